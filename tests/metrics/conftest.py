import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """Random weights of the Inception network, at the scale of trained ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    patch.undo()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path
