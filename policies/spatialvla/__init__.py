"""The 3-D vision-language-action model: LLaVA-3D with a flow-matching action expert."""

import logging

# Where they are installed, transformers imports torchao, and peft bitsandbytes, whether or not anybody quantises; both
# then warn of every GPU kernel that they did not find.
for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)
