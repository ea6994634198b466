"""A benchmark's outcome as a document, as a table and as a picture."""
import dataclasses
import datetime
import os
import platform
from pathlib import Path

from gluon_resnest import processor
from gluon_resnest.benchmark.rounds import PEAK
from gluon_resnest.benchmark.timing import FEWEST, summarize, undisturbed
from gluon_resnest.errors import MissingExtra
from gluon_resnest.provenance import commit, short

FORMAT = 1
_VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def document(kind, entries, plan, outcome, *, settings, flops=None):
    """Returns all that was measured as plain values.

    Args:
      kind: "infer", "train" or "data".
      entries, plan, outcome: of `rounds.run`.
      settings: {flag: value} of the command.
      flops: of an image, or None where a share of the peak has no meaning.
    """
    clean = undisturbed(outcome.rounds, plan.limit)
    counts = len(clean) >= FEWEST
    kept = clean if counts else outcome.rounds
    labels = [entry.label for entry in entries if entry.label != PEAK]
    summaries = summarize(kept, labels[0])
    peak = outcome.ready[PEAK]["flops"] / summaries[PEAK].seconds if PEAK in summaries else None
    images = {entry.label: entry.images for entry in entries}
    rows = []
    for label in labels:
        summary, ready = summaries[label], outcome.ready[label]
        speed = images[label] / summary.seconds
        scale = images[label] / images[labels[0]]
        rows.append({
            "competitor": label, "seconds": summary.seconds, "spread": summary.spread,
            "images_per_second": speed, "ratio": summary.speed * scale,
            "ratio_low": summary.low * scale, "ratio_high": summary.high * scale,
            "cpu_seconds": summary.cpu,
            "cpu_ratio": summary.cpu_speed and summary.cpu_speed * scale,
            "share_of_peak": speed * flops / peak if flops and peak else None,
            "first_seconds": ready["first"], "peak_memory": outcome.memory[label],
            "device_memory": outcome.device_memory[label], "versions": ready["versions"]})
    return {"format": FORMAT, "kind": kind, "settings": settings, "machine": machine(),
            "commit": commit(), "time": datetime.datetime.now().isoformat(timespec="seconds"),
            "plan": dataclasses.asdict(plan), "peak_flops": peak,
            "rounds": {"all": len(outcome.rounds), "undisturbed": len(clean),
                       "used": len(kept), "valid": counts},
            "rows": rows,
            "turns": [{label: dataclasses.asdict(turn) for label, turn in turns.items()}
                      for turns in outcome.rounds]}


def machine():
    """Returns what there is to say about this machine."""
    return {"cpu": processor.name(), "cpus": os.cpu_count(),
            "vectors": [name for name in _VECTORS if processor.has(name)],
            "system": platform.platform(),
            "load": [round(load, 2) for load in os.getloadavg()]}


def text(report):
    """Returns a document as Markdown: a sentence about the rounds, and a table."""
    rounds, host = report["rounds"], report["machine"]
    lines = [_title(report),
             f"{host['cpu']}, {host['cpus']} CPUs, {' '.join(host['vectors'])}, load "
             f"{host['load'][0]}; commit {short(report['commit'], 12)}; {report['time']}"]
    if report["peak_flops"]:
        lines.append(f"peak by a product of matrices: {report['peak_flops'] / 1e9:.0f} GFLOP/s")
    if rounds["valid"]:
        lines.append(f"{rounds['used']} rounds; {rounds['all'] - rounds['used']} of "
                     f"{rounds['all']} were dropped because others held a CPU")
    else:
        lines.append(f"NOT A MEASUREMENT: only {rounds['undisturbed']} of {rounds['all']} rounds "
                     f"were undisturbed, {FEWEST} are needed; all are shown, compare CPU time only")
    lines += ["", "| | ms | spread | images/s | speed | CPU ms | by CPU time | of peak | "
              "first result | memory |", "|---" * 10 + "|"]
    for row in report["rows"]:
        lines.append("| " + " | ".join([
            row["competitor"], f"{1e3 * row['seconds']:.1f}", f"{row['spread']:.0%}",
            f"{row['images_per_second']:.2f}",
            f"{row['ratio']:.3f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            f"{1e3 * row['cpu_seconds']:.1f}",
            f"{row['cpu_ratio']:.3f}" if row["cpu_ratio"] else "",
            f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "",
            f"{row['first_seconds']:.1f} s",
            f"{(row['device_memory'] or row['peak_memory']) / 2 ** 20:.0f} MB"]) + " |")
    versions = {name: version for row in report["rows"]
                for name, version in row["versions"].items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}"
                                            for name, version in versions.items())])


def draw(report, path):
    """Draws images per second of each competitor, every round that was used a point.

    Raises:
      MissingExtra: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib") from error
    rows = report["rows"][::-1]
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh([row["competitor"] for row in rows], [row["images_per_second"] for row in rows],
              color=["#b0b0b0"] * (len(rows) - 1) + ["#2a7fb8"])
    for place, row in enumerate(rows):
        axes.annotate(f"{row['images_per_second']:.1f}  ({row['ratio']:.2f}x)",
                      (row["images_per_second"], place), xytext=(4, 0),
                      textcoords="offset points", va="center")
    axes.margins(x=0.2)
    axes.set_xlabel("images/s" + ("" if report["rounds"]["valid"] else
                                  " (not a measurement: the machine was busy)"))
    axes.set_title(_title(report), fontsize=9)
    figure.savefig(Path(path), dpi=110)


def _title(report):
    return f"{report['kind']}: " + ", ".join(f"{name} {value}" for name, value in
                                             report["settings"].items())
