#!/usr/bin/env bash
# Everything that needs a GPU, in one go of less than 8 minutes, from a bare checkout:
#
#     tools/gpu_check.sh          # writes docs/gpu/DATE-CARD.md
#
# Sets .venv up if it is absent (the system's torch is used where it is new enough, and alone where there is no
# network), then runs every test marked gpu, training over NCCL on all GPUs, and the benchmark of the kernels. Each part
# has a time limit, and the next one runs whatever the last one did. Exit code: 0 all passed, 1 something failed, 2 no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$card" ]; then
    echo "gpu_check: nvidia-smi finds no GPU on this machine; nothing was run" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/data_tools OMP_NUM_THREADS=1
failed=0
rows=()
tails=()

# part NAME SECONDS COMMAND...: runs it, adds a row, and keeps what a failing one said last
part() {
    local name=$1 limit=$2 log=$work/${#rows[@]}.log begin=$SECONDS code result
    shift 2
    echo "gpu_check: $name (at most $limit s) ..."
    timeout --kill-after=2 "$limit" "$@" >"$log" 2>&1
    code=$?
    case $code in
    0) result=pass ;;
    124 | 137) result="FAIL, ended after $limit s" ;;
    *) result="FAIL, exit code $code" ;;
    esac
    local last
    last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-120 | tr '|' '/')
    rows+=("| $name | $result | $((SECONDS - begin)) | $last |")
    echo "gpu_check: $name: $result"
    if [ $code -ne 0 ]; then
        failed=1
        tails+=("## $name: the end of what it said"$'\n\n```\n'"$(tail -n 40 "$log")"$'\n```\n')
    fi
}

setup() {
    local python=.venv/bin/python
    [ -x $python ] || ${PYTHON:-python3} -m venv --system-site-packages .venv || return 1
    if ! $python -c 'import torch, triton, pytest, numpy, safetensors, matplotlib, ziya_data._indexed' 2>/dev/null; then
        $python -m pip install -q --disable-pip-version-check -e '.[dev,hf]' ||
            $python setup.py build_ext --inplace # no network: what the system has must do
    fi
    $python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "torch sees no GPU in .venv")'
}
export -f setup

python=.venv/bin/python
part "set-up" 100 bash -c setup
part "tests of the kernels" 150 $python -m pytest -q -m gpu --continue-on-collection-errors tests/ziya_kernels
part "tests of the engine, NCCL" 90 $python -m pytest -q -m gpu --continue-on-collection-errors tests/megatron_ziya
part "benchmark" 130 $python tools/benchmark_kernels.py --device cuda --shapes llama2-7b,llama2-13b,llama2-70b \
    --rounds 10 --markdown "$work/kernels.md"

mkdir -p docs/gpu
table=docs/gpu/$(date +%F)-$(echo "${card%%,*}" | tr -cs 'A-Za-z0-9\n' '-').md
{
    echo "# GPU check: ${card%%,*}, $(date +%F)"
    echo
    echo "\`tools/gpu_check.sh\`, driver${card#*,}, $(nvidia-smi -L | wc -l) GPU(s)," \
        "$($python -c 'import torch; print("torch", torch.__version__)' 2>/dev/null || echo 'no torch')," \
        "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)."
    echo
    echo "| part | result | seconds | last line |"
    echo "|---|---|---|---|"
    printf '%s\n' "${rows[@]}"
    echo
    [ ${#tails[@]} -eq 0 ] || printf '%s\n' "${tails[@]}"
    [ ! -e "$work/kernels.md" ] || sed 's/^# /## /' "$work/kernels.md"
} >"$table.tmp"
mv "$table.tmp" "$table"
echo "gpu_check: wrote $table"
exit $failed
