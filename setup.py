"""What pyproject.toml cannot say: which C extension to build, and that one build serves every Python from 3.11 on."""

from setuptools import setup

setup(cffi_modules=["vmm/kvm/native_build.py:builder"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
