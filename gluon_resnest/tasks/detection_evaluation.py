"""From detections to COCO's results, their AP, and the recall of proposals."""
import numpy as np

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.pasting import encode
from gluon_resnest.tasks.coco_files import judge

# COCOeval.stats of boxes and of masks, in its order.
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
          "ar_small", "ar_medium", "ar_large")
KINDS = {"bbox": "", "segm": "mask_"}       # pycocotools' name -> prefix of the metrics' names
_DETECTIONS = 2         # of COCOeval's limits 1, 10 and 100 that of the AP
_ALL_AREAS = 0

RECALL_LIMITS = (100, 1000)
RECALL_IOUS = np.arange(0.5, 0.96, 0.05)


def coco_results(found, image_id, original, category_ids):
    """Returns the boxes and the masks of one image in COCO's result format.

    Two lists: a file with both would have the masks of COCOeval sorted by the areas of the boxes.

    Args:
      found: `inference.Found`.
      image_id: COCO's.
      original: (height, width) of the image.
      category_ids: int64 (K,), COCO's numbers of the classes.

    Returns:
      Two lists of dicts; the second is empty without masks.
    """
    height, width = map(int, original)
    boxes, masks = [], []
    for number, (corners, kind, score) in enumerate(zip(found.boxes, found.classes, found.scores)):
        head = {"image_id": int(image_id), "category_id": int(category_ids[kind])}
        left, top, right, bottom = corners.tolist()
        boxes.append({**head, "bbox": [round(edge, 3) for edge in
                                       (left, top, right - left, bottom - top)],
                      "score": round(float(score), 6)})
        if found.masks is not None:
            masks.append({**head, "segmentation": encode(found.masks[number], corners, height,
                                                         width),
                          "score": boxes[-1]["score"]})
    return boxes, masks


def coco_ap(ground_truth, results, kind):
    """Computes COCO's metrics of boxes or masks.

    Args:
      ground_truth: content of an instances_*.json.
      results: list of dicts in COCO's result format, maybe empty.
      kind: "bbox" or "segm".

    Returns:
      ({"ap", "ap50", ...} in per cent, without those of a size that no object has; for masks the
      names begin with "mask_"), and {class name: AP in per cent} of the classes that have objects.

    Raises:
      UserError: if no object is annotated, crowds aside, or the results are of other images.
    """
    check_images(ground_truth, results)
    judging = judge(ground_truth, results, kind)
    metrics = {KINDS[kind] + name: 100 * float(value)
               for name, value in zip(_NAMES, judging.stats) if value >= 0}
    if KINDS[kind] + "ap" not in metrics:
        raise UserError("the annotations have no object that counts, so there is nothing to "
                        "compare with; give an instances_*.json with objects, crowds aside")
    names = {each["id"]: each["name"] for each in ground_truth["categories"]}
    per_class = {}
    for column, number in enumerate(judging.params.catIds):
        precision = judging.eval["precision"][:, :, column, _ALL_AREAS, _DETECTIONS]
        if (precision > -1).any():
            per_class[names[number]] = 100 * float(precision[precision > -1].mean())
    return metrics, per_class


def check_images(ground_truth, results):
    """Raises a UserError if results are of images that the annotations do not list."""
    known = {image["id"] for image in ground_truth["images"]}
    strangers = sorted({result["image_id"] for result in results} - known)
    if strangers:
        raise UserError(f"the results speak of image {strangers[0]}, which the annotations do not "
                        "list; give the annotations of the images that were looked at")


def check_results(results, source):
    """Returns the kinds, of KINDS, that a list in COCO's result format holds.

    Raises:
      UserError: if it is no such list.
    """
    fields = {"bbox": "bbox", "segm": "segmentation"}
    entries = results if isinstance(results, list) else [None]
    kinds = [kind for kind, field in fields.items()
             if all(isinstance(entry, dict) and field in entry for entry in entries)]
    if not kinds or any(not {"image_id", "category_id", "score"} <= set(entry)
                        for entry in entries):
        raise UserError(f"{source} is no list of results in COCO's format; each needs image_id, "
                        "category_id, score and bbox or segmentation")
    return kinds if entries else ["bbox"]


class ProposalRecall:
    """Counts which objects proposals find: AR of boxes without classes, as Detectron2 counts it.

    An object is found by the proposal that overlaps it most, each proposal finds one object, and
    the best pairs are made first. Crowds do not count.
    """

    def __init__(self):
        self._hits = np.zeros((len(RECALL_LIMITS), len(RECALL_IOUS)), np.int64)
        self._objects = 0

    def update(self, proposals, objects):
        """Counts one image: proposals float32 (P, 4), best first, and objects (G, 4)."""
        self._objects += len(objects)
        for row, limit in enumerate(RECALL_LIMITS):
            overlaps = best_pairs(box.iou(objects, proposals[:limit]))
            self._hits[row] += (overlaps[:, None] >= RECALL_IOUS).sum(axis=0)

    def counts(self):
        """Returns what is added over the workers; see `ratios`."""
        return {"hits": self._hits, "objects": self._objects}

    @staticmethod
    def ratios(counts):
        """Returns {"proposals_ar100": per cent, ...} of summed `counts`."""
        objects = max(counts["objects"], 1)
        return {f"proposals_ar{limit}": 100 * float(hits.mean()) / objects
                for limit, hits in zip(RECALL_LIMITS, counts["hits"])}


def best_pairs(overlaps):
    """Returns the overlap that each object gets, best pair first: (G, P) to at most (G,)."""
    overlaps, got = overlaps.copy(), []
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        got.append(overlaps[row, column])
        overlaps[row], overlaps[:, column] = -1, -1
    return np.array(got, np.float32)


def table(per_class):
    """Returns {class: AP} as lines of text, three classes a line."""
    cells = [f"{name[:20]:20s} {value:6.2f}" for name, value in sorted(per_class.items())]
    return "\n".join("   ".join(cells[start:start + 3]) for start in range(0, len(cells), 3))
