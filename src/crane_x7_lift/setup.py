from glob import glob

from setuptools import find_packages, setup

PACKAGE = "crane_x7_lift"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Simulated tasks for the CRANE-X7 arm",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(),
    package_data={"": ["params/*.yaml", "assets/*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/params", glob("lift/params/*.yaml")),
    ],
    install_requires=["crane_x7_vla", "numpy", "mujoco-core[rendering]", "rich"],
    extras_require={"policies": ["crane_x7_vla[inference]"]},
    zip_safe=False,
    entry_points={
        "console_scripts": ["sim_node = lift.nodes.sim_node:main", "expert_node = lift.nodes.expert_node:main"]
    },
)
