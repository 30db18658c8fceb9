import sys, tensorflow as tf; print(sys.version, tf.__version__)
