// Nearest entries of the code books, sixteen lanes at a time.  Included by level.h only, into its unnamed
// namespace.

struct Codes {
    PartBits part[kParts];  // indices into a table
};

// The code book of IQ4_NL and IQ4_XS; and of MXFP4, whose scale is halved to match, without signs.
constexpr float kIq4Floats[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kMxfp4Magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};

// table[index], index [0, 8).
QUANTD_INLINE Part look_up_8(const float* table, const PartBits& index) {
    if constexpr (kPartFloats == 8) {
        Part entries;
        __builtin_memcpy(&entries, table, sizeof(entries));
        return __builtin_shuffle(entries, index);
    } else if constexpr (kPartFloats == 16) {
        float both[kPartFloats] = {};
        __builtin_memcpy(both, table, 8 * sizeof(float));
        Part entries;
        __builtin_memcpy(&entries, both, sizeof(entries));
        return __builtin_shuffle(entries, index);
    } else {
        Part r;
        for (int i = 0; i < kPartFloats; ++i) r[i] = table[index[i]];
        return r;
    }
}

// table[index], index [0, 16).
QUANTD_INLINE Part look_up_16(const float* table, const PartBits& index) {
    if constexpr (kPartFloats == 8) {
        const Part low = look_up_8(table, index & 7), high = look_up_8(table + 8, index & 7);
        return index < 8 ? low : high;
    } else if constexpr (kPartFloats == 16) {
        Part entries;
        __builtin_memcpy(&entries, table, kPartFloats * sizeof(float));
        return __builtin_shuffle(entries, index);
    } else {
        Part r;
        for (int i = 0; i < kPartFloats; ++i) r[i] = table[index[i]];
        return r;
    }
}

QUANTD_INLINE Lanes look_up(const float* table, const Codes& codes) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = look_up_16(table, codes.part[p]);
    return r;
}

QUANTD_INLINE Lanes to_float(const Codes& codes) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = __builtin_convertvector(codes.part[p], Part);
    return r;
}

// Index of the entry of the IQ4 code book nearest to v; at a limit the lower one.  Four halvings.
QUANTD_INLINE Codes code_of(const Lanes& v) {
    constexpr float kSecond[8] = {-57.0f, 45.5f};  // by the bits found so far
    constexpr float kThird[8] = {-93.5f, -28.5f, 19.0f, 79.0f};
    constexpr float kFourth[8] = {-115.5f, -74.0f, -42.0f, -16.0f, 7.0f, 31.5f, 61.0f, 101.0f};
    Codes r;
    for (int p = 0; p < kParts; ++p) {
        const Part x = v.part[p];
        PartBits code = (x > -4.5f) & 1;
        code = (code << 1) | ((x > look_up_8(kSecond, code)) & 1);
        code = (code << 1) | ((x > look_up_8(kThird, code)) & 1);
        code = (code << 1) | ((x > look_up_8(kFourth, code)) & 1);
        r.part[p] = code;
    }
    return r;
}

// Index of the MXFP4 magnitude nearest to v >= 0.  Three halvings.
QUANTD_INLINE Codes mxfp4_code_of(const Lanes& v) {
    constexpr float kSecond[8] = {1.5f, 7.0f};
    constexpr float kThird[8] = {0.5f, 2.5f, 5.0f, 10.0f};
    Codes r;
    for (int p = 0; p < kParts; ++p) {
        const Part x = v.part[p];
        PartBits code = (x > 3.5f) & 1;
        code = (code << 1) | ((x > look_up_8(kSecond, code)) & 1);
        code = (code << 1) | ((x > look_up_8(kThird, code)) & 1);
        r.part[p] = code;
    }
    return r;
}

QUANTD_INLINE Lanes mxfp4_magnitude(const Codes& codes) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = look_up_8(kMxfp4Magnitudes, codes.part[p]);
    return r;
}
