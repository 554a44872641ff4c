"""Says which version answers, and its colour. Both come with the image, not with the deploy."""

import os

from flask import Flask, jsonify

COLOR = os.environ["APP_COLOR"]
VERSION = os.environ["APP_VERSION"]
app = Flask(__name__)


@app.get("/")
def home():
    return jsonify(color=COLOR, version=VERSION, revision=os.environ.get("K_REVISION"))


@app.get("/health")
def health():
    return jsonify(status="healthy")
