from glob import glob

from setuptools import find_packages, setup

PACKAGE = "crane_x7_log"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="TFRecord recorder for the CRANE-X7 arm",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(),
    package_data={"": ["params/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/params", glob("crane_x7_log/params/*.yaml")),
    ],
    install_requires=["crane_x7_vla", "numpy", "pillow"],
    zip_safe=False,
    entry_points={"console_scripts": ["recorder_node = crane_x7_log.nodes.recorder_node:main"]},
)
