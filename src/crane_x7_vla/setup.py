from glob import glob

from setuptools import find_packages, setup

PACKAGE = "crane_x7_vla"
INFERENCE = ["torch", "safetensors", "tokenizers", "peft", "jaxtyping"]

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Vision-language-action models for the CRANE-X7 arm",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(),
    package_data={"": ["params/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/params", glob("crane_x7_vla/params/*.yaml")),
        (f"share/{PACKAGE}/configs", glob("configs/*.yaml")),
    ],
    install_requires=["numpy", "PyYAML", "simplejpeg", "google-crc32c", "pillow"],
    extras_require={
        "inference": INFERENCE,
        "train": [*INFERENCE, "rich", "tensorboard", "huggingface-hub", "matplotlib"],
        "wandb": ["wandb"],
    },
    zip_safe=False,
    entry_points={"console_scripts": ["vla_inference_node = crane_x7_vla.nodes.inference_node:main"]},
)
