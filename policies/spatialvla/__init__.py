"""The 3-D vision-language-action model: LLaVA-3D with a flow-matching action expert."""
