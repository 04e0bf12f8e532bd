"""The LightningModule, optimizers, averages of weights, memory."""
