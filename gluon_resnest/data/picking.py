"""A few easy images of a source of images with objects, for trials that learn them by heart."""
from gluon_resnest.errors import UserError


class Picked:
    """Some images of a source, itself a source; see `instances`.

    Args:
      source: what they are taken from, kept as an attribute.
      numbers: their indices in it.
    """

    def __init__(self, source, numbers):
        self.class_names, self.category_ids = source.class_names, source.category_ids
        self.source, self._numbers = source, list(numbers)

    def __len__(self):
        return len(self._numbers)

    def image_id(self, index):
        return self.source.image_id(self._numbers[index])

    def size(self, index):
        return self.source.size(self._numbers[index])

    def name(self, index):
        return self.source.name(self._numbers[index])

    def learnable(self, index):
        return self.source.learnable(self._numbers[index])

    def read(self, index):
        return self.source.read(self._numbers[index])

    def objects(self, index):
        return self.source.objects(self._numbers[index])

    def part_of(self, content):
        """Returns the content of the source's annotation file, of these images only."""
        own = {self.image_id(index) for index in range(len(self))}
        return {**content,
                "images": [each for each in content["images"] if each["id"] in own],
                "annotations": [each for each in content["annotations"]
                                if each["image_id"] in own]}


def pick_clear(source, count, transform, least_px=16):
    """Returns the first `count` images with objects, none a crowd and none small, as `Picked`.

    Args:
      source: see `instances`.
      transform: `detection_transforms.EvalTransform` that says how images are resized.
      least_px: shortest side of the objects' boxes in resized images.

    Raises:
      UserError: if there are fewer such images.
    """
    numbers = []
    for number in range(len(source)):
        if len(numbers) == count:
            break
        objects = source.objects(number)
        boxes = transform.move(*source.size(number)).boxes(objects.boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        if len(sides) and not objects.crowd.any() and sides.min() >= least_px:
            numbers.append(number)
    if len(numbers) < count:
        raise UserError(f"only {len(numbers)} of {len(source)} images have objects and among them "
                        f"neither a crowd nor one below {least_px} px, expected {count}; pick "
                        "fewer, or give more images")
    return Picked(source, numbers)
