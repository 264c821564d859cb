"""How lmms-eval finds the adapter: this package's entry point in its group `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest  # ty: ignore[import-not-found]


def manifest() -> ModelManifest:
    """Return the name under which lmms-eval knows the adapter, and where its class is."""
    return ModelManifest(
        model_id="phivision", simple_class_path="deployments.lmms.adapter.PhiVision"
    )
