"""What `vidlit plan` says, and the file that it writes."""
