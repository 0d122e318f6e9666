"""Generated code of the `convlens.v1` contract: see proto/convlens/v1/convlens.proto and scripts/protos."""
