"""From detections to COCO's results, their AP, and the recall of proposals."""
import numpy as np

from gluon_resnest.data.coco import is_numbers
from gluon_resnest.data.instance_masks import BadMask, check_mask, outlines
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
      UserError: if no object is annotated, crowds aside, if a mask is missing or broken, or the
        results are of other images.
    """
    check_images(ground_truth, results)
    judging = judge(with_masks(ground_truth, kind), results, kind)
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


def with_masks(ground_truth, kind):
    """Returns the content of an annotation file, with `outlines` only if masks are judged.

    Raises:
      UserError: if masks are judged and an annotation has none, or a broken one.
    """
    if kind != "segm":
        return ground_truth
    sizes, rows = _sizes(ground_truth), []
    for row in ground_truth.get("annotations", ()):
        polygons = outlines(row.get("segmentation"))
        if not polygons:
            raise UserError(f"annotation {row['id']} of image {row['image_id']} has no mask, "
                            "neither run lengths nor a polygon of three points or more; add it, or "
                            "remove the annotation")
        try:
            check_mask(polygons, sizes[row["image_id"]])
        except BadMask as error:
            raise UserError(f"annotation {row['id']} of image {row['image_id']} has a broken mask: "
                            f"{error}; mend or remove it") from error
        rows.append({**row, "segmentation": polygons})
    return {**ground_truth, "annotations": rows}


def check_results(results, source, ground_truth):
    """Returns the kinds, of KINDS, that a list in COCO's result format holds.

    Args:
      results: content of a json file.
      source: its name, for messages.
      ground_truth: content of an annotation file of the same images.

    Raises:
      UserError: if it is no such list, if a box or a mask in it is broken or of another image.
    """
    fields = {"bbox": "bbox", "segm": "segmentation"}
    entries = results if isinstance(results, list) else [None]
    kinds = [kind for kind, field in fields.items()
             if all(isinstance(entry, dict) and field in entry for entry in entries)]
    if not kinds or any(not {"image_id", "category_id", "score"} <= set(entry)
                        for entry in entries):
        raise UserError(f"{source} is no list of results in COCO's format; each needs image_id, "
                        "category_id, score and bbox or segmentation")
    sizes = _sizes(ground_truth)
    for number, entry in enumerate(entries):
        complaint = _complaint(entry, kinds, sizes)
        if complaint:
            raise UserError(f"{source}: result {number} has {complaint}; mend or remove it")
    return kinds if entries else ["bbox"]


def _complaint(entry, kinds, sizes):
    """Returns what is wrong with a result, or None; strange images are left to `check_images`."""
    for field in ("image_id", "category_id", "score"):
        if not is_numbers(entry[field], None):
            return f"{entry[field]!r} as {field} where a number is expected"
    if "bbox" in kinds and not is_numbers(entry["bbox"], 4):
        return f"{entry['bbox']!r} as bbox where four finite numbers are expected"
    if "segm" in kinds and entry["image_id"] in sizes:
        code = entry["segmentation"]
        if not isinstance(code, dict) or not isinstance(code.get("counts"), str):
            return 'a segmentation that is no compressed run lengths {"size", "counts"}'
        try:
            check_mask(code, sizes[entry["image_id"]])
        except BadMask as error:
            return f"a broken mask: {error}"
    return None


def _sizes(ground_truth):
    """Returns {image id: (height, width)} of the content of an annotation file."""
    return {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}


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
