"""What has a say in stopping: callbacks that judge the run, and the one that decides."""
