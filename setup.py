"Packaging: everything it says stands in settings.ini, which nbdev reads too."

from configparser import ConfigParser
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
extras = {
    key.removesuffix("_requirements"): value.split()
    for key, value in settings.items()
    if key.endswith("_requirements")
}

setuptools.setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    packages=setuptools.find_packages(include=[settings["lib_name"], settings["lib_name"] + ".*"]),
    package_data={
        settings["lib_name"]: ["**/*.po", "**/*.mako", "web/templates/**/*", "web/static/*", "ui/static/*"]
    },
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
