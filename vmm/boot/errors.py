"""What is wrong with a file that a guest was to start from."""

from vmm.errors import PyvmmError


class ImageError(PyvmmError):
    """An image, initrd or command line cannot be used; the text names the file and the reason."""
