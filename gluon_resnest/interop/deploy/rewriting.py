"""From the graph of a trained network to one for deployment."""
from gluon_resnest.interop.deploy.attention import rewrite_attention
from gluon_resnest.interop.deploy.draft import Draft
from gluon_resnest.interop.deploy.folding import fold_batch_norms


def deploy_graph(graph, arrays):
    """Folds the batch norms of a prediction graph and rewrites its attention.

    Batch and image size stay as free as they were.

    Args: as `export.trace` returns them.

    Returns:
      (Graph, {`arg:` or `aux:` name: numpy array}) that compute the same but for rounding.
    """
    draft = Draft(graph, arrays)
    fold_batch_norms(draft)
    rewrite_attention(draft)
    return draft.finish()
