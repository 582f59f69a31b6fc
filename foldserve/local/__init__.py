"""Uses a published version in this process, without a server: predicts, and judges it on labelled images."""
