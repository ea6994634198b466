"""From found joints to COCO's results and their OKS AP."""
import numpy as np

from gluon_resnest.data.keypoints import PERSON
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.coco_files import cocoeval, judge

# COCOeval.stats of keypoints, in its order.
_NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium",
          "ar_large")


def coco_results(persons, joints, threshold):
    """Returns found joints in COCO's result format, one dict for each person.

    A person's score is its box's score times the mean score of the joints above `threshold`; 0
    where there are none.

    Args:
      persons: `data.keypoints.Persons`, P of them.
      joints: (P, 17, 3): x and y in the image, score.
      threshold: of a joint's score.
    """
    counted = joints[..., 2] > threshold
    sums = (joints[..., 2] * counted).sum(axis=1)
    scores = sums / np.maximum(counted.sum(axis=1), 1) * persons.scores
    return [{"image_id": int(image), "category_id": PERSON,
             "keypoints": np.round(points.astype(float), 4).ravel().tolist(), "score": float(score)}
            for image, points, score in zip(persons.image_ids, joints, scores)]


def suppress(results, areas, threshold, sigmas):
    """Leaves out whoever is too like a better found person of the same image (OKS NMS).

    Args:
      results: from `coco_results`.
      areas: of each person in the image, in square pixels.
      threshold: largest object keypoint similarity to a person that is kept.
      sigmas: (17,) of the similarity, COCO's.

    Returns:
      Those of `results` that are kept, in their order.
    """
    points = np.array([result["keypoints"] for result in results]).reshape(len(results), -1, 3)
    images = np.array([result["image_id"] for result in results])
    areas, spread = np.asarray(areas, float), 2 * (2 * np.asarray(sigmas)) ** 2
    kept = []
    for image in np.unique(images):
        members = np.flatnonzero(images == image)
        queue = members[np.argsort([-results[member]["score"] for member in members],
                                   kind="stable")]
        while len(queue):
            first, queue = queue[0], queue[1:]
            kept.append(first)
            square = ((points[queue, :, :2] - points[first, :, :2]) ** 2).sum(axis=2)
            mean_area = (areas[queue] + areas[first]) / 2
            alike = np.exp(-square / spread / mean_area[:, None]).mean(axis=1)
            queue = queue[alike <= threshold]
    return [results[index] for index in sorted(kept)]


def joint_sigmas():
    """Returns COCO's (17,) sigmas of the object keypoint similarity."""
    return cocoeval().Params("keypoints").kpt_oks_sigmas


def oks_ap(ground_truth, results):
    """Computes COCO's keypoint metrics.

    Args:
      ground_truth: content of a person_keypoints_*.json, see `data.keypoints.read_truth`.
      results: list of dicts in COCO's result format, at least one.

    Returns:
      {"ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", ...}: per cent; without those of a size
      that no annotated person has.

    Raises:
      UserError: if no annotated person has labelled joints.
    """
    judging = judge(ground_truth, results, "keypoints")
    metrics = {name: 100 * float(value) for name, value in zip(_NAMES, judging.stats) if value >= 0}
    if "ap" not in metrics:
        raise UserError("the annotations have no person with labelled joints, so there is nothing "
                        "to compare with; give a person_keypoints_*.json with joints")
    return metrics
