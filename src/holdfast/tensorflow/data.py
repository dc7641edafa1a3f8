"""`prepare_dataset_shard`."""

from __future__ import annotations

from typing import Any


def prepare_dataset_shard(tf_dataset_shard: Any) -> Any:
    """A `tf.data.Dataset` that holds this rank's share already, so that a strategy does not divide it once more.

    Its elements are also prefetched, as many as TensorFlow sees fit.

    Args:
        tf_dataset_shard: The dataset, which `Dataset.shard(world_size, rank)` gave, or which was read from this rank's files.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    from holdfast.tensorflow.config import check_installed

    check_installed()
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return tf_dataset_shard.with_options(options).prefetch(tf.data.AUTOTUNE)
