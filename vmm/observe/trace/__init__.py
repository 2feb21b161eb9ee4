"""What happened in a guest: records of it, filters, and what prints or counts them."""
