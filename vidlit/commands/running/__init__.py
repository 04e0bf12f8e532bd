"""Commands that ask something of a fit that is going on."""
