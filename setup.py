"""The one thing that pyproject.toml cannot say: which C extension to build."""

from setuptools import setup

setup(cffi_modules=["vmm/kvm/native_build.py:builder"])
