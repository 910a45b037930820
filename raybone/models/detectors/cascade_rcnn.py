"""Cascade R-CNN (Cai & Vasconcelos 2018, arXiv:1712.00726): three heads, each trained on the boxes
of the one before.

Stages ask for an overlap of .5, .6 and .7; boxes are class-agnostic, and the score of a last box is
the mean of what each head says of the box that it was given, as common implementations have it (the
paper's ensemble has all three look at the boxes of the third stage). torchvision has no such model;
its Faster R-CNN gives the backbone, the proposals and the parts of a head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import boxes as box_ops

from raybone.models._model import Model
from raybone.models.detectors._torchvision import DEPTHS, IMAGENET, SPACE, builder
from raybone.models.detectors.faster_rcnn import Config
from raybone.models.detectors.faster_rcnn import make as make_faster_rcnn

# Section 4.3 and the authors' code: overlap of a positive, inverse spread of the box offsets,
# weight of the losses.
OVERLAPS = (0.5, 0.6, 0.7)
SPREADS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
SHARES = (1.0, 0.5, 0.25)

Targets = list[dict[str, Tensor]]


class CascadeHeads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """The three heads in place of Faster R-CNN's one; torchvision's matching, sampling and
    pooling.
    """

    def __init__(self, one: RoIHeads, categories: int) -> None:
        sampler = one.fg_bg_sampler
        super().__init__(
            one.box_roi_pool,
            nn.Identity(),
            nn.Identity(),
            OVERLAPS[0],
            OVERLAPS[0],
            sampler.batch_size_per_image,
            sampler.positive_fraction,
            None,
            one.score_thresh,
            one.nms_thresh,
            one.detections_per_img,
        )
        inputs, width = one.box_head.fc6.in_features, one.box_head.fc6.out_features
        self.heads = nn.ModuleList(TwoMLPHead(inputs, width) for _ in OVERLAPS)
        self.predictors = nn.ModuleList(FastRCNNPredictor(width, categories + 1) for _ in OVERLAPS)
        for predictor in self.predictors:
            predictor.bbox_pred = nn.Linear(width, 4)
        self.matchers = [Matcher(o, o, allow_low_quality_matches=False) for o in OVERLAPS]
        self.coders = [BoxCoder(s) for s in SPREADS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in eval mode, losses of all stages in train mode; the other of the two is
        empty.

        Args:
            features: pyramid levels by name; proposals: (N, 4) xyxy an image; image_shapes: (H, W)
                of each.
            targets: boxes and labels (0 is the background) of each image, in train mode.
        """
        losses: dict[str, Tensor] = {}
        probabilities = []
        for stage, (head, predictor) in enumerate(zip(self.heads, self.predictors)):
            self.proposal_matcher, self.box_coder = self.matchers[stage], self.coders[stage]
            if self.training:
                proposals, labels, offsets = self._matched(stage, proposals, cast(Targets, targets))
            logits, moves = predictor(head(self.box_roi_pool(features, proposals, image_shapes)))
            if self.training:
                losses |= _losses(stage, logits, moves, labels, offsets)
            else:
                probabilities.append(logits.softmax(-1))
            proposals = self._moved(moves.detach(), proposals, image_shapes)
        if self.training:
            return [], losses
        return self._detections(torch.stack(probabilities).mean(0), proposals), {}

    def _matched(
        self, stage: int, proposals: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Proposals of a stage with the label and the box offsets that each should get."""
        if stage == 0:
            proposals, _, labels, offsets = self.select_training_samples(proposals, targets)
            return proposals, torch.cat(labels), torch.cat(offsets)
        # Only the first stage draws a sample: the boxes it moved are enough, and better, for the
        # next.
        boxes = [t["boxes"] for t in targets]
        places, labels = self.assign_targets_to_proposals(
            proposals, boxes, [t["labels"] for t in targets]
        )
        wanted = [(b if len(b) else b.new_zeros(1, 4))[i] for b, i in zip(boxes, places)]
        return proposals, torch.cat(labels), torch.cat(self.box_coder.encode(wanted, proposals))

    def _moved(
        self, moves_N4: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Boxes after a stage, inside their images; at least a pixel wide and high, so that offsets
        stay finite.
        """
        moved_N4 = self.box_coder.decode(moves_N4, proposals).reshape(-1, 4)
        parts = torch.split(moved_N4, [len(p) for p in proposals])
        boxes = [box_ops.clip_boxes_to_image(p, shape) for p, shape in zip(parts, image_shapes)]
        if not self.training:
            return boxes
        return [torch.cat([b[:, :2], torch.maximum(b[:, 2:], b[:, :2] + 1)], 1) for b in boxes]

    def _detections(self, scores_NC: Tensor, boxes: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for boxes_N4, image_NC in zip(
            boxes, torch.split(scores_NC[:, 1:], [len(b) for b in boxes])
        ):
            place_M, label_M = torch.where(image_NC > self.score_thresh)
            kept_M4, score_M = boxes_N4[place_M], image_NC[place_M, label_M]
            best = box_ops.batched_nms(kept_M4, score_M, label_M, self.nms_thresh)[
                : self.detections_per_img
            ]
            found.append(
                {"boxes": kept_M4[best], "labels": label_M[best] + 1, "scores": score_M[best]}
            )
        return found


def make(config: Config, depth: int) -> FasterRCNN:
    """Faster R-CNN with the heads exchanged."""
    net = make_faster_rcnn(config, depth)
    net.roi_heads = CascadeHeads(net.roi_heads, len(config.categories))
    return net


def _losses(
    stage: int, logits_NC: Tensor, moves_N4: Tensor, labels_N: Tensor, offsets_N4: Tensor
) -> dict[str, Tensor]:
    positive = labels_N > 0
    # Sums over the boxes divided by their number: a mean over none would not be finite.
    share = SHARES[stage] / max(len(labels_N), 1)
    box = functional.smooth_l1_loss(
        moves_N4[positive], offsets_N4[positive], beta=1 / 9, reduction="sum"
    )
    return {
        f"loss_classifier_{stage}": share
        * functional.cross_entropy(logits_NC, labels_N, reduction="sum"),
        f"loss_box_reg_{stage}": share * box,
    }


SOURCE = "Cai & Vasconcelos 2018, arXiv:1712.00726; on torchvision's parts"
MODELS = [
    Model(
        f"cascade_rcnn_r{d}",
        "detection",
        Config,
        builder(make, d, 1),
        SPACE,
        SOURCE,
        weights=IMAGENET[d],
    )
    for d in DEPTHS
]
