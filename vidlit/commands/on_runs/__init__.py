"""Commands that look at runs, or ask one that is going on for something: none of them trains."""
