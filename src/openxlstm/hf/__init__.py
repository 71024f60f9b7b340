"""openxlstm in `transformers`. Importing this package registers its classes with the Auto classes,
so that `AutoModelForCausalLM.from_pretrained` opens the folder of any run."""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import AutoTokenizer
except ImportError as error:
    raise ImportError(
        f"openxlstm.hf needs the package transformers ({error}): pip install 'openxlstm[hf]'"
    ) from error

from openxlstm.hf.cache import OpenXLSTMCache
from openxlstm.hf.config import OpenXLSTMConfig
from openxlstm.hf.model import OpenXLSTMForCausalLM, OpenXLSTMModel

__all__ = ["OpenXLSTMCache", "OpenXLSTMConfig", "OpenXLSTMForCausalLM", "OpenXLSTMModel"]

AutoConfig.register(OpenXLSTMConfig.model_type, OpenXLSTMConfig, exist_ok=True)
AutoModel.register(OpenXLSTMConfig, OpenXLSTMModel, exist_ok=True)
AutoModelForCausalLM.register(OpenXLSTMConfig, OpenXLSTMForCausalLM, exist_ok=True)
AutoTokenizer.register(OpenXLSTMConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
