"""What a guest sees as devices, and their back ends."""
