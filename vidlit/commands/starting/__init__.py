"""What ``vidlit init`` finds out and writes: the shipped configs, the folder of clips, the card, the first config."""
