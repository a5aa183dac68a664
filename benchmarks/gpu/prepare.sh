#!/bin/sh
# Make the wheels that a machine with a GPU and no network lacks: DeepSpeed, built here without its operators, and what
# it and the package need. Unpack them there, and run both calls:
#
#   benchmarks/gpu/prepare.sh .whl
#   # on the machine, in the tree, with .whl carried along:
#   python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl
#   PYTHONPATH=/tmp/site:. python3 -m benchmarks.gpu_suite --call first --out first.json
#   PYTHONPATH=/tmp/site:. python3 -m benchmarks.gpu_suite --call second --out second.json
#
# It must have Python $PYTHON_VERSION, torch, transformers, pyarrow, typer, rich, jinja2, fsspec and packaging already.
set -eu

folder=${1:?usage: prepare.sh FOLDER}
version=${PYTHON_VERSION:-3.12}
python=${PYTHON:-python3}
most_mib=64

mkdir -p "$folder"
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation --no-binary deepspeed -w "$folder" deepspeed==0.19.8
platforms=""
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms="$platforms --platform ${tag}_x86_64"
done
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp $platforms \
  -d "$folder" pydantic==2.14.4 pydantic-core==2.50.5 typing-inspection==0.4.5 annotated-types==0.8.0 \
  zstandard==0.25.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 hjson==3.1.0
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $size MiB in $(ls "$folder" | wc -l) files"
[ "$size" -le "$most_mib" ] || { echo "more than $most_mib MiB: leave something out" >&2; exit 1; }
