"""What a classification training costs in images, values and bytes, for `--plan`."""
from gluon_resnest.data.sampling import TrainPlan
from gluon_resnest.engine.plan import Workload
from gluon_resnest.interop.analysis import analyze
from gluon_resnest.zoo import get_model


def classification_workload(recipe, cluster):
    """Returns the `Workload` of a ClassificationRecipe; nothing is allocated.

    Args:
      recipe: a ClassificationRecipe.
      cluster: `engine.plan.Cluster`; says how many images and workers there are.

    Raises:
      UserError: if the batch cannot be divided among the workers.
    """
    workers, images = int(cluster.workers), int(cluster.images)
    steps = TrainPlan(images, recipe.batch, 0, workers, recipe.seed, recipe.data_order,
                      recipe.remainder).steps_per_epoch
    total = analyze(get_model(recipe.network, classes=recipe.classes),
                    (recipe.crop_px, recipe.crop_px)).total()
    statistics = _statistics(recipe)
    return Workload(
        batch=recipe.batch, steps_per_epoch=steps, epochs=recipe.epochs, parameters=total.params,
        values=total.params + statistics,
        activation_bytes=total.bytes // recipe.accumulate, optimizer=recipe.optimizer,
        average=bool(recipe.ema_decay), gradient_bytes=2 if recipe.compression == "fp16" else 4)


def _statistics(recipe):
    """Returns the number of running statistics: as many as gammas and betas."""
    params = get_model(recipe.network, classes=recipe.classes).collect_params()
    return sum(parameter.shape[0] for name, parameter in params.items()
               if name.endswith(("running_mean", "running_var")))
