"""What libxl does: from an image to a domain, and a domain's life from outside."""
