"""torchmetrics.Metric classes; nothing here knows Lightning."""
