// The way into a decoder of vectors, by the kind of a tile's voxels.
//
// What includes it has, in CTGPU_VARIANT, `packed_bytes` and a `decode` for each kind.

namespace ctgpu::codec {

namespace scalar {
Fault decode_tile(const Stream &, const TileShape &, const Parts &, const std::uint8_t *,
                  const Target &);
}

namespace CTGPU_VARIANT {

Fault decode_tile(const Stream &stream, const TileShape &shape, const Parts &parts,
                  const std::uint8_t *data, const Target &target) {
    if (!holds_parts(shape, parts))
        return Fault::size;
    if (packed_bytes(shape, stream.coding, data) != parts.packed)
        return Fault::packed;
    const TileParts at(shape, parts, data);
    switch (stream.kind) {
    case Kind::uint8:
        return decode<Kind::uint8>(stream, shape, at, target);
    case Kind::int16:
        return decode<Kind::int16>(stream, shape, at, target);
    case Kind::grid:
        return decode<Kind::grid>(stream, shape, at, target);
    case Kind::float16:
        return decode<Kind::float16>(stream, shape, at, target);
    default:
        // More than vectors take of the low bits of a voxel.
        return tiny_bits(stream.kind, stream.grid) > 14
                   ? scalar::decode_tile(stream, shape, parts, data, target)
                   : decode<Kind::bfloat16>(stream, shape, at, target);
    }
}

}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
