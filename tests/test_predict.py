"""interop.predictor and the two tools around it, from a run or weights to answers."""
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.config import PoseRecipe
from gluon_resnest.data.transforms import eval_transform
from gluon_resnest.errors import UserError
from gluon_resnest.interop.deployed import Card, paths
from gluon_resnest.interop.drawing import draw_answers
from gluon_resnest.interop.export import export_classifier
from gluon_resnest.interop.predictor import Answer, Guess, Predictor, find_images
from gluon_resnest.models.resnest import initialize

ROOT = Path(__file__).resolve().parents[1]
CARD = Card("resnest_tiny", 3, 32, class_names=("cat", "dog", "crane"))


def run_tool(name, *words):
    """Runs a tool as a user would."""
    return subprocess.run([sys.executable, str(ROOT / "tools" / name), *map(str, words)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          timeout=120)


def assert_one_sentence(result, *parts):
    """Exit code 2, one line that has all parts, no traceback."""
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def net():
    built = zoo.get_model("resnest_tiny", classes=3)
    initialize(built)
    return built


@pytest.fixture(scope="module")
def deploy(net, tmp_path_factory):
    """Prefix of an exported pair, beside it w.params."""
    folder = tmp_path_factory.mktemp("deploy")
    export_classifier(net, folder / "tiny", CARD)
    net.save_parameters(str(folder / "w.params"))
    return folder / "tiny"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with three images, one in a folder below, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    for number, file in enumerate(["b.png", "a.jpg", "deep/c.png"]):
        noise = np.random.RandomState(number).randint(0, 256, (40 + number, 50, 3), np.uint8)
        cv2.imwrite(str(folder / file), noise)
    (folder / "notes.txt").write_text("no image")
    return folder


def pictures(count):
    rng = np.random.RandomState(0)
    return [rng.randint(0, 256, (30 + i, 60, 3)).astype(np.uint8) for i in range(count)]


def test_probabilities_are_the_softmax_of_the_net_on_the_evaluation_crop(net, deploy):
    images = pictures(3)
    ready = np.stack([eval_transform(32, "gluon")(image) for image in images])
    expected = nd.softmax(net(nd.array(ready))).asnumpy()
    np.testing.assert_allclose(Predictor.load(deploy).probabilities(images), expected, atol=1e-6)


def test_logits_of_any_size_give_probabilities_that_sum_to_one():
    predictor = Predictor(lambda images: np.float32([[1e4, 0, -1e4]] * len(images)), CARD)
    assert predictor.probabilities(pictures(2)).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_guesses_are_ordered_named_and_as_many_as_asked():
    predictor = Predictor(lambda images: np.log(np.float32([[0.2, 0.7, 0.1]] * len(images))), CARD)
    (first, second), = predictor.predict(pictures(1), topk=2)
    assert (first.index, first.name, second.label) == (1, "dog", "cat")
    assert first.probability == pytest.approx(0.7)
    assert len(next(predictor.predict(pictures(1), topk=50))) == 3


def test_the_batch_size_does_not_change_the_answers(deploy):
    predictor = Predictor.load(deploy)
    alone = list(predictor.predict(pictures(5), batch=1))
    for batch in (2, 5, 100):
        for one, many in zip(alone, predictor.predict(pictures(5), batch=batch)):
            assert [g.index for g in one] == [g.index for g in many]
            np.testing.assert_allclose([g.probability for g in one],
                                       [g.probability for g in many], atol=1e-6)


def test_answers_come_in_the_order_of_the_files_and_bad_ones_have_a_problem(deploy, photos):
    files = [photos / "b.png", photos / "notes.txt", photos / "a.jpg", photos / "b.png"]
    answers = list(Predictor.load(deploy).classify(files, batch=3))
    assert [answer.file for answer in answers] == files
    assert "notes.txt" in answers[1].problem and answers[1].guesses == ()
    assert answers[0].guesses[0].index == answers[3].guesses[0].index
    assert answers[0].problem is None


def test_not_a_number_is_no_answer():
    predictor = Predictor(lambda images: np.full((len(images), 3), np.nan), CARD)
    with pytest.raises(UserError, match="NaN or infinity"):
        predictor.probabilities(pictures(1))


def test_a_pair_without_card_needs_one(deploy, tmp_path):
    for source, target in list(zip(paths(deploy), paths(tmp_path / "x")))[:2]:
        target.write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="no card 'x.json'.*give crop and protocol"):
        Predictor.load(tmp_path / "x")
    assert Predictor.load(tmp_path / "x", CARD).card == CARD


def test_folders_are_searched_deeply_and_sorted(photos):
    assert find_images([photos]) == [photos / "a.jpg", photos / "b.png", photos / "deep/c.png"]
    assert find_images([photos / "notes.txt"]) == [photos / "notes.txt"]


def test_a_drawing_shows_every_answer(photos, tmp_path):
    guesses = (Guess(0, "cat" * 30, 0.9), Guess(1, None, 0.1))
    answers = [Answer(photos / name, guesses) for name in ("a.jpg", "b.png", "deep/c.png")]
    heights = []
    for count in (1, 2, 3):
        draw_answers(tmp_path / "x.png", answers[:count] + [Answer(photos / "x", (), "broken")])
        heights.append(cv2.imread(str(tmp_path / "x.png")).shape[:2])
    one, two, three = heights
    assert one[0] < two[0] == three[0] and one[1] == two[1] < three[1]


@pytest.mark.parametrize("name, message", [
    ("x.txt", "expected a name ending in .png"), ("absent/x.png", "existing, writable folder")])
def test_a_drawing_that_cannot_be_written_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        draw_answers(tmp_path / name, [])


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to draw"):
        draw_answers(tmp_path / "x.png", [Answer(Path("x"), (), "broken")])


# The tools, as processes


def test_tools_export_and_predict(deploy, photos, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\ncrane\n")
    weights = deploy.parent / "w.params"
    made = run_tool("export_model.py", "--model", "resnest_tiny", "--weights", weights, "--crop",
                    32, "--classes-file", tmp_path / "names.txt", "--out", tmp_path / "new" / "x")
    assert made.returncode == 0, made.stderr
    assert "3 classes, crop 32 px, protocol gluon" in made.stdout
    exported = run_tool("predict.py", tmp_path / "new" / "x", photos, "--json", "--save",
                        tmp_path / "x.png")
    assert exported.returncode == 0, exported.stderr
    assert cv2.imread(str(tmp_path / "x.png")) is not None
    direct = run_tool("predict.py", "resnest_tiny", photos, "--json", "--weights", weights,
                      "--crop", 32, "--classes-file", tmp_path / "names.txt")
    assert direct.returncode == 0, direct.stderr
    for one, other in zip(json.loads(exported.stdout), json.loads(direct.stdout)):
        assert one["file"] == other["file"] and one["problem"] is None
        for guess, twin in zip(one["guesses"], other["guesses"]):
            assert guess["name"] == twin["name"]
            assert guess["probability"] == pytest.approx(twin["probability"], abs=1e-5)


def test_a_bad_picture_does_not_hide_the_good_ones(deploy, photos):
    result = run_tool("predict.py", deploy, photos / "notes.txt", photos / "a.jpg", "--topk", 1)
    assert_one_sentence(result, "1 of 2 images could not be classified", "notes.txt")
    assert "a.jpg\n   1 " in result.stdout


def test_answers_are_told_one_by_one_and_only_those_to_draw_are_kept(capsys, monkeypatch):
    predict, told = load_tool("predict"), []
    monkeypatch.setattr("gluon_resnest.interop.drawing.MAX_DRAWN", 2)

    def answers():
        for number in range(5):
            yield Answer(Path(f"{number}.png"), (), "broken" if number == 1 else None)
            told.append(capsys.readouterr().out)

    flags = predict.parse(["x", "y", "--json", "--save", "z.png"])
    result = predict.tell(answers(), flags, lambda answer: {"n": answer.file.stem}, None)
    assert [answer.file.stem for answer in result.kept] == ["0", "2"]
    assert (result.files, result.problems, result.first) == (5, 1, "broken")
    whole = json.loads("".join(told) + capsys.readouterr().out)
    assert [each["n"] for each in whole] == list("01234") and all(told)
    flags.save = None
    assert predict.tell(answers(), flags, lambda answer: {}, None).kept == []


def test_what_was_told_before_an_error_is_valid_json(capsys):
    def answers():
        yield Answer(Path("a.png"), (), None)
        raise UserError("diverged")

    predict = load_tool("predict")
    with pytest.raises(UserError, match="diverged"):
        predict.tell(answers(), predict.parse(["x", "y", "--json"]), lambda answer: {}, None)
    assert json.loads(capsys.readouterr().out) == [{"file": "a.png", "problem": None}]


def load_tool(tool):
    import importlib.util
    spec = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main_of(tool, *words):
    """Runs a tool's main inside this process, which is faster; returns its SystemExit."""
    with pytest.raises(SystemExit) as caught:
        load_tool(tool).main([str(word) for word in words])
    return caught.value.code


@pytest.mark.parametrize("words, message", [
    (["{tmp}/tinny", "{photos}"], "there is no '{tmp}/tinny-symbol.json'"),
    (["{tmp}/tinny", "{photos}", "--threshold", "0.3"], "there is no '{tmp}/tinny-symbol.json'"),
    (["resnest51", "{photos}"], "unknown model 'resnest51'"),
    (["FCN_ResNeSt_tiny_voc", "{photos}", "--topk", "3"], "a segmentation network; leave it out"),
    (["Simple_Pose_ResNeSt50", "{photos}", "--topk", "3"], "a pose network; leave it out"),
    (["fcn_resnest_tiny", "{photos}"], "'fcn_resnest_tiny' names no data set"),
    (["{deploy}", "{tmp}/absent.jpg"], "there is no image or folder"),
    (["{deploy}", "{tmp}"], "holds no image; expected files ending"),
    (["{deploy}", "{photos}", "--save", "{tmp}/x/y.png"], "existing, writable folder"),
    (["{deploy}", "{photos}", "--save", "{tmp}/y.doc"], "expected a name ending in .png"),
    (["{deploy}", "{photos}", "--topk", "0"], "must be at least 1, got 0"),
    (["{deploy}", "{photos}", "--protocol", "glon"], "did you mean 'gluon'"),
    (["{deploy}", "{photos}", "--crop", "3"], "crop_px=3, which cannot be"),
    (["{deploy}", "{photos}", "--weights", "x"], "--weights belongs to a zoo name"),
    (["{deploy}", "{photos}", "--classes-file", "{photos}/notes.txt"],
     "1 class names for 3 classes"),
    (["resnest_tiny", "{photos}", "--weights", "{tmp}/absent.params"], "absent.params"),
])
def test_predict_refuses_in_one_sentence(deploy, photos, tmp_path, capsys, words, message):
    places = {"deploy": deploy, "photos": photos, "tmp": tmp_path}
    assert main_of("predict", *[word.format(**places) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(**places) in line


@pytest.mark.parametrize("words", [[], ["--explain", "{tmp}/x.png"], ["--boxes", "boxes.json"]])
def test_a_run_of_another_kind_is_named_whatever_the_flags(photos, tmp_path, capsys, words):
    recipe = PoseRecipe(network="resnest14", source="a test")
    (tmp_path / "config.json").write_text(json.dumps({"kind": "PoseRecipe",
                                                      "recipe": recipe.to_json()}))
    assert main_of("predict", tmp_path, photos, *[word.format(tmp=tmp_path) for word in words]) == 2
    assert "holds a run of a PoseRecipe, not of a Class" in capsys.readouterr().err


def test_bad_pictures_alone_are_not_explained(deploy, photos, tmp_path, capsys):
    words = ["resnest_tiny", photos / "notes.txt", "--weights", deploy.parent / "w.params"]
    assert main_of("predict", *words, "--explain", tmp_path / "why.png") == 2
    told = capsys.readouterr()
    assert "nothing to draw" in told.err and "notes.txt" in told.out


def test_the_opacity_of_a_classifier_is_that_of_its_evidence(deploy, photos, tmp_path, capsys):
    words = ["resnest_tiny", photos / "a.jpg", "--weights", deploy.parent / "w.params",
             "--opacity", "1"]
    assert main_of("predict", *words) == 2
    assert "--explain PICTURE draws; give it" in capsys.readouterr().err
    load_tool("predict").main([str(word) for word in [*words, "--explain", tmp_path / "why.png"]])
    assert cv2.imread(str(tmp_path / "why.png")) is not None


def test_predict_refuses_a_wrong_checksum(deploy, photos, tmp_path, capsys):
    for source, target in zip(paths(deploy), paths(tmp_path / "x")):
        target.write_bytes(source.read_bytes())
    file = paths(tmp_path / "x")[0]
    file.write_text(file.read_text() + " ")
    assert main_of("predict", tmp_path / "x", photos) == 2
    assert "SHA-256 differs" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    (["--out", "{tmp}/x"], "either a run directory or --model NAME"),
    (["{tmp}", "--model", "resnest50", "--out", "{tmp}/x"], "either a run directory or --model"),
    (["{tmp}", "--out", "{tmp}/x"], "no run directory"),
    (["--model", "resnest_tiny", "--weights", "{weights}", "--out", "{weights}/x"],
     "choose a prefix in a writable folder"),
    (["--model", "resnest14", "--weights", "{weights}", "--out", "{tmp}/x"], "does not fit"),
    (["--model", "unknown", "--out", "{tmp}/x", "--min-agreement", "0.5"],
     "--min-agreement belongs to a deploy graph; add --target mxnet or onnx"),
    (["--model", "unknown", "--out", "{tmp}/x", "--target", "onnx", "--judging", "{tmp}"],
     "--judging takes the place of some images of --calibration; add --calibration"),
    (["--model", "unknown", "--out", "{tmp}/x", "--target", "mxnet", "--judging-images", "0"],
     "the number of judging images must be a whole number from 1 to"),
    (["--model", "unknown", "--out", "{tmp}/x", "--target", "mxnet", "--calibration-images=-5"],
     "at least one, got -5 images"),
    (["--model", "resnest_tiny", "--weights", "{weights}", "--out", "{tmp}/x", "--target", "onnx",
      "--precision", "int8", "--calibration", "{tmp}", "--float-layers", "0,99"],
     "there is no layer 99 to keep in float32"),
])
def test_export_refuses_in_one_sentence(deploy, tmp_path, capsys, words, message):
    places = {"tmp": tmp_path, "weights": deploy.parent / "w.params"}
    assert main_of("export_model", *[word.format(**places) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []
