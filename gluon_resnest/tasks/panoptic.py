"""Panoptic segmentation as a Task: a detector with a semantic head, judged by PQ."""
import itertools

from gluon_resnest.data.panoptic import Panoptic as Segments
from gluon_resnest.data.panoptic import png, read_panoptic, write_panoptic
from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.merging import Rules, merge
from gluon_resnest.models.detection.panoptic import detector_name
from gluon_resnest.models.detection.panoptic_inference import look, look_views
from gluon_resnest.tasks import panoptic_data
from gluon_resnest.tasks.coco_files import write_results
from gluon_resnest.tasks.detection import Detection
from gluon_resnest.tasks.detector import build_panoptic
from gluon_resnest.tasks.panoptic_quality import count, quality
from gluon_resnest.tasks.workload import panoptic_workload

RESULTS = "panoptic.json"           # in the run directory, beside the folder of its PNGs
QUALITY = "quality.json"            # in the run directory: PQ, SQ and RQ by category


class PanopticSegmentation(Detection):
    """Trains and evaluates one panoptic network on images with objects and stuff.

    What `Detection` does, and besides: evaluations put segments together and compute their PQ;
    panoptic.json with its PNGs and quality.json are written, too.

    Args:
      recipe: a PanopticRecipe.
      run: the command line's other flags.
      comm: this worker's `engine.comm` connection.
    """

    main_metric = "pq"
    workload = staticmethod(panoptic_workload)
    build = staticmethod(build_panoptic)
    look, look_views = staticmethod(look), staticmethod(look_views)

    @staticmethod
    def add_flags(parser):
        """Adds the paths and sizes that belong to a machine, not to the experiment."""
        Detection.add_flags(parser)
        panoptic_data.add_flags(parser)

    @property
    def detector(self):
        """The `RCNN`."""
        return self.net.detector

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        parts = [f"{word}PQ {metrics[prefix + 'pq']:.2f} % (SQ {metrics[prefix + 'sq']:.2f}, "
                 f"RQ {metrics[prefix + 'rq']:.2f})"
                 for word, prefix in (("", ""), ("things ", "things_"), ("stuff ", "stuff_"))
                 if prefix + "pq" in metrics]
        rest = Detection.describe(metrics) if "ap" in metrics else f"{metrics['images']} images"
        return ", ".join([*parts, rest])

    def _open_data(self):
        if not detector_name(self._recipe.network):
            raise UserError(f"{self._recipe.network!r} is no panoptic network; expected "
                            "{panoptic|panoptic_cascade}_fpn_{backbone}[_dcn]_coco, such as "
                            "panoptic_fpn_resnest50_coco")
        return panoptic_data.PanopticData(self._recipe, self._run, self._comm)

    def _names(self, source):
        """Returns the names of the things, then of the stuff."""
        things = super()._names(source)
        known = things and len(source.stuff_names) == self._recipe.stuff
        return [*things, *source.stuff_names] if known else None

    def _prepared(self, loader, batch):
        images, sizes, objects, rngs, *counted = super()._prepared(loader, batch)
        return (images, sizes, objects, rngs, batch.labels, *counted)

    def _results(self, index, seen, original):
        recipe, source = self._recipe, self._data.source
        ids, segments = merge(seen.found, seen.labels, Rules(
            recipe.confidence, recipe.overlap, recipe.stuff_area))
        things, stuff = self._numbers()
        found = Segments(ids, [
            {"id": each.id, "area": each.area,
             "category_id": (things if each.thing else stuff)[each.kind]}
            for each in segments])
        annotation = {"image_id": source.image_id(index), "segments_info": found.segments,
                      "file_name": f"{source.image_id(index):012d}.png"}
        return (*super()._results(index, seen.found, original), annotation,
                png(ids) if self._workdir else None, count(source.panoptic(index), found))

    def _numbers(self):
        """Returns COCO's numbers of the things and of the stuff; beyond the data's, nobody's."""
        recipe, source = self._recipe, self._data.source
        known = [source.category_ids.tolist(), source.stuff_ids.tolist()]
        nobodys = itertools.count(1 + max(itertools.chain(*known)))
        return [[*numbers, *itertools.islice(nobodys, wanted - len(numbers))]
                for numbers, wanted in zip(known, (recipe.classes, recipe.stuff))]

    def _category_ids(self):
        return self._numbers()[0]

    def _things(self):
        """Returns {category_id: whether it is a thing}."""
        source = self._data.source
        return {**dict.fromkeys(source.category_ids.tolist(), True),
                **dict.fromkeys(source.stuff_ids.tolist(), False)}

    def _judged(self, rows):
        """Writes and judges what all workers found."""
        metrics = super()._judged([row[:3] for row in rows])
        if self._workdir is not None:
            write_panoptic(self._workdir / RESULTS, {
                "categories": self._categories(),
                "annotations": [annotation for *_, annotation, _, _ in rows]},
                [(annotation["file_name"], data) for *_, annotation, data, _ in rows])
        return {**metrics, **self._quality([counts for *_, counts in rows])}

    def _categories(self):
        """Returns the categories as in COCO's json."""
        source = self._data.source
        names = [*source.class_names, *source.stuff_names]
        return [{"id": number, "name": name, "isthing": int(thing)}
                for (number, thing), name in zip(self._things().items(), names)]

    def _quality(self, counts):
        """Returns the metrics; writes PQ, SQ and RQ of each category."""
        metrics, per_category = quality(counts, self._things())
        if self._workdir is not None:
            names = {row["id"]: row["name"] for row in self._categories()}
            write_results(self._workdir / QUALITY, {
                names[number]: dict(zip(("pq", "sq", "rq"), values))
                for number, values in per_category.items()})
        return metrics

    def _judge_file(self):
        """Judges --results FILE, a panoptic json."""
        source, files = self._data.source, read_panoptic(self._run.results)
        if not len(files):
            raise UserError(f"{self._run.results} predicts nothing, its list of annotations is "
                            "empty; give the panoptic.json of an evaluation")
        counts = []
        for index in range(len(source)):
            if source.image_id(index) not in files:
                raise UserError(f"{self._run.results} has no prediction for {source.name(index)}; "
                                "give a file of all evaluation images")
            found, truth = (files.read(source.image_id(index), self._things()),
                            source.panoptic(index))
            if found.ids.shape != truth.ids.shape:
                raise UserError(
                    f"{files.name(source.image_id(index))} is {found.ids.shape[0]} x "
                    f"{found.ids.shape[1]} pixels (height x width), but its annotation "
                    f"{truth.ids.shape[0]} x {truth.ids.shape[1]}; predict at the image's size")
            counts.append(count(truth, found))
        return {**self._quality(counts), "images": len(source)}
