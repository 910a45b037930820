#!/bin/sh
# The rows of one paper's tables, beside its figures, on a phantom: other data, a narrower network, fewer epochs and a
# higher learning rate, so that the figures show that the protocol runs and not what it is worth. An hour or two a paper on
# two cores, and more with the ResNets of bs80k; resumes what is there.
#   jobs/paper.sh wbbs|spect|lesions|bs80k [OUT]
# EPOCHS and PATIENTS make it longer, ROWS="lesion-resnet50 lesion-densenet169" takes some of the rows.
# On your data, run jobs/*.yaml as their first lines say, then `raybone compare`.
set -ef
paper=${1:-} done=
out=${2:-runs/paper-$paper}
case $out in *[[:space:]]*)
    echo "jobs/paper.sh: OUT must be without blanks, got '$out'; choose another folder" >&2
    exit 2
    ;;
esac
case $paper in
wbbs) folds=5 epochs=${EPOCHS:-16} patients=${PATIENTS:-36} ;;
spect) folds=3 epochs=${EPOCHS:-16} patients=${PATIENTS:-36} ;;
lesions) folds=3 epochs=${EPOCHS:-12} patients=${PATIENTS:-36} ;;
*) folds=3 epochs=${EPOCHS:-12} patients=${PATIENTS:-36} height=512 ;;
esac

cohort() { # NAME SEED LAYOUT PREPARE-OPTIONS...
    name=$1 seed=$2 layout=$3
    shift 3
    if ! test -d "$out/$name-raw"; then
        rm -rf "$out/$name-half"
        raybone phantom "$out/$name-half" --patients "$patients" --seed "$seed" --height "${height:-256}" --layout "$layout"
        mv "$out/$name-half" "$out/$name-raw"
    fi
    # A key of its own: phantoms have the same names whatever their seed, and would count as the same patients.
    test -d "$out/$name" || raybone prepare "$out/$name-raw" "$out/$name" --folds $folds --key "$out/$name.key" "$@"
}

study() { # JOB NAME SETTINGS...
    job=$1 name=$2
    shift 2
    case " ${ROWS:-$name} " in *" $name "*) ;; *) return ;; esac
    raybone search "jobs/$job.yaml" --out "$out/$name" --local --set name="$name" epochs="$epochs" search.folds=$folds \
        search.scheduler=full search.sampler=random limits={} "resources={cpus: 2}" "$@"
    done="$done $out/$name"
}

case $paper in
wbbs)
    steps="--steps body_range brightness knee_cut montage"
    cohort breast 1 dicom --negatives training $steps
    cohort prostate 2 dicom --negatives training $steps
    # Both losses of each row, one at a time; the other cohort is of one.
    same='"lr0":0.003,"fliplr":0.5,"gamma":0.0'
    one="{$same,\"dice\":1.0,\"focal_tversky\":0.0}" other="{$same,\"dice\":0.0,\"focal_tversky\":1.0}"
    size="fixed.imgsz=160 fixed.width=16 space.lr0.log_uniform=[0.0001,0.01]"
    small="dataset=$out/breast $size search.trials=2 search.points=[$one,$other]"
    study wbbs_double_unet wbbs-double-unet $small
    study wbbs_double_unet_otsu wbbs-double-unet-otsu $small
    study wbbs_double_unet_otsu wbbs-double-unet-otsu-negatives $small fixed.negatives=true
    study wbbs_double_unet_mining wbbs-double-unet-mining $small fixed.nm="$out/wbbs-double-unet"
    study wbbs_double_unet_mining wbbs-double-unet-mining-negatives $small fixed.nm="$out/wbbs-double-unet" \
        fixed.negatives=true
    tables=$done
    study wbbs_double_unet_otsu wbbs-prostate dataset="$out/prostate" $size search.trials=1 "search.points=[$one]" \
        fixed.negatives=true
    study wbbs_transfer wbbs-transfer $small fixed.init_from="$out/wbbs-prostate"
    done="$tables $out/wbbs-transfer"
    ;;
spect)
    cohort spect 3 dicom --steps max_min bladder
    small="dataset=$out/spect fixed.imgsz=256 fixed.tile=64 fixed.batch=8 fixed.nbs=8 search.trials=1"
    parts='"multi_pooling":true,"non_local":true,"multi_scale":true,"vit":true'
    study spect_msma_unet spect-msma-unet $small fixed.width=16 "search.points=[{\"lr0\":0.001,$parts,\"fliplr\":0.5}]"
    # The rows of Table 7, below the whole.
    no='"fliplr":0.5,"lr0":0.001,"multi_pooling":false'
    rows="{$no,\"non_local\":true,\"multi_scale\":true,\"vit\":true},{$no,\"non_local\":false,\"multi_scale\":true,\"vit\":true}"
    rows="$rows,{$no,\"non_local\":false,\"multi_scale\":false,\"vit\":true}"
    rows="$rows,{$no,\"non_local\":false,\"multi_scale\":false,\"vit\":false}"
    study spect_msma_unet spect-ablation $small fixed.width=16 search.trials=4 "search.points=[$rows]"
    for model in unet unet_plus_plus attention_unet resunet_a amsunet cmunext multi_inception_unet rar_unet \
        icunet_plus_plus; do
        case $model in amsunet | cmunext) narrow= ;; *) narrow=fixed.width=16 ;; esac
        study spect_msma_unet "spect-$(echo $model | tr _ -)" $small $narrow model=$model search.points=[] \
            "space={lr0: {choice: [0.001]}, fliplr: {choice: [0.5]}}"
    done
    ;;
lesions)
    cohort lesions 4 dicom
    for model in resnet50 inception_v3 vgg16 densenet169; do
        study "lesion_$model" "lesion-$(echo $model | tr _ -)" dataset="$out/lesions" search.trials=1 fixed.imgsz=128 \
            fixed.batch=16 fixed.nbs=16 'search.points=[{"lr0":0.0003,"weight_decay":0.0,"fliplr":0.5,"count_scale":0.0}]'
    done
    ;;
bs80k)
    cohort bs80k 5 bs80k --layout bs80k
    small="dataset=$out/bs80k search.trials=1 fixed.imgsz=512 fixed.batch=2 fixed.nbs=2 fixed.optimizer=AdamW"
    small="$small fixed.schedule=cosine fixed.warmup_epochs=1 fixed.warmup_bias_lr=0.0 fixed.gamma=0.3"
    study bs80k_yolo11 bs80k-yolo11 $small "space={lr0: {choice: [0.002]}, fliplr: {choice: [0.5]}}"
    rate="space={lr0: {choice: [0.0005]}, fliplr: {choice: [0.5]}}"
    small="$small fixed.channels=64 fixed.anchor=dataset"
    study bs80k_retinanet bs80k-retinanet-r50 $small "$rate"
    study bs80k_faster_rcnn bs80k-faster-rcnn-r50 $small fixed.head=256 fixed.rois=128 "$rate"
    study bs80k_cascade_rcnn bs80k-cascade-rcnn-r50 $small fixed.head=256 fixed.rois=128 "$rate"
    ;;
*)
    echo "jobs/paper.sh: needs wbbs, spect, lesions or bs80k, got '$paper'" >&2
    exit 2
    ;;
esac
raybone compare $done
