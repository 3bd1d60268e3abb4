from glob import glob

from setuptools import find_packages, setup

PACKAGE = "crane_x7_bringup"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Bring-up and demo of the CRANE-X7 VLA suite",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(),
    package_data={"": ["params/*", "models/*/*", "*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/params", glob("crane_x7_bringup/params/*.yaml")),
    ],
    install_requires=[
        *("crane_x7_vla[train]", "crane_x7_log", "crane_x7_lift[policies]"),
        *("numpy", "PyYAML", "matplotlib", "rich", "torch"),
    ],
    zip_safe=False,
    entry_points={"console_scripts": ["demo = crane_x7_bringup.demo.__main__:main"]},
)
