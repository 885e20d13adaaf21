"""Fashion-MNIST from files or from the network."""

from src.datamodules.mnist_datamodule import IdxDataModule


class FashionMNISTDataModule(IdxDataModule):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): clothes in grey, 28x28 pixels, resized to `img_size`.

    `data_dir` holds the four files or their `.gz`, directly or under `FashionMNIST/raw/`; they are downloaded there.
    """

    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    n_classes = len(class_names)
    source = "fashion-mnist"
    title = "Fashion-MNIST"
    folder_name = "FashionMNIST/raw"
    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    files = {
        "train-images-idx3-ubyte": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte": ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte": ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte": ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
    }
