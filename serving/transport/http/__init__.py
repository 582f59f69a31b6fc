"""Serves the Open Inference Protocol's REST API, and pictures, over HTTP by starlette and uvicorn."""
