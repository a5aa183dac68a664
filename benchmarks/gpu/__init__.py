"""What the first minutes of a GPU are used for; `python -m benchmarks.gpu_suite --call first` and `--call second`."""
