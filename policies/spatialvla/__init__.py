"""The 3-D vision-language-action model: LLaVA-3D with a flow-matching action expert."""

import logging

# transformers imports torchao, and peft bitsandbytes, wherever these are installed; both then warn about every GPU
# kernel that they do not find.
for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)
