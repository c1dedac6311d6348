"""The stylizer without torch: networks that onnxruntime runs, everything else in numpy."""
