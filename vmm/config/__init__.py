"""What a user asks for, as data: a domain, its features, its devices."""
