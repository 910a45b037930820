#!/bin/sh
# Five detectors on a phantom cohort, and their common leaderboard; about an hour on two cores.
#   jobs/phantom_detectors.sh [OUT]        resumes what is there
set -e
out=${1:-runs/detectors}
test -d "$out/phantom" || raybone phantom "$out/phantom" --patients 36 --seed 7 --height 512
test -d "$out/dataset" || raybone prepare "$out/phantom" "$out/dataset" --folds 3 --key "$out/phantom.key"

# The R50 models with a narrow pyramid and head: at full width an epoch takes three to six times as long on a CPU.
study() {
    model=$1
    shift
    raybone search jobs/phantom_detectors.yaml --out "$out/$model" \
        --set dataset="$out/dataset" model="$model" name="$model" "$@"
}
study yolo11n
study yolo11s
narrow="fixed.channels=64 fixed.anchor=dataset space.lr0.choice=[0.0005]"
study retinanet_r50 $narrow
study faster_rcnn_r50 $narrow fixed.head=256 fixed.rois=128
study cascade_rcnn_r50 $narrow fixed.head=256 fixed.rois=128

raybone leaderboard "$out/yolo11n" "$out/yolo11s" "$out/retinanet_r50" "$out/faster_rcnn_r50" "$out/cascade_rcnn_r50" \
    --csv "$out/leaderboard.csv"
