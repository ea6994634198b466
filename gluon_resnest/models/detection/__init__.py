"""Two-stage detection and instance segmentation on a feature pyramid, in small parts.

conventions: what tells frameworks apart, as data. boxes, anchors, matching, sampling, targets:
pure functions, numpy where nothing is learnt. fpn, rpn, roi_pooling, roi_heads, losses: blocks and
functions of the graph. rcnn: the composition. build: networks by name.
"""
