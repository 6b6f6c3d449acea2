"""The loops of `graphs.steps` in C99: each is a text in which @ stands for the prefix of the network.

NUMBER is the type of those that only move numbers. All arrays are flat and row by row, those of images channel by
channel. Results may be written over an operand where `c_source.IN_PLACE` says so.
"""

WINDOW = """typedef struct {
    int channels, height, width, out, rows, columns;
    int kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, groups;
} @window;
"""

FIRST = """/* The first and the last place of a window that lies inside of its image. */
static int @first(int at, int dilation) { return at < 0 ? (dilation - 1 - at) / dilation : 0; }
static int @last(int at, int dilation, int kernel, int size) {
    int most = at < size ? (size - at + dilation - 1) / dilation : 0;
    return most < kernel ? most : kernel;
}
"""

CLAMPED = """static float @clamped(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}
"""

SCALED = """/* value * multiplier / 2^shift, rounded to the nearest, halves away from zero. */
static int32_t @scaled(int64_t value, int32_t multiplier, int shift) {
    int64_t product = value * multiplier, half = (int64_t)1 << (shift - 1);
    return (int32_t)(product < 0 ? -((half - product) >> shift) : (product + half) >> shift);
}
static int8_t @byte(int32_t value, int low, int high) {
    return (int8_t)(value < low ? low : value > high ? high : value);
}
"""

_CONV = """static void @conv{q}(const @window *w, const {T} *x, const {T} *weight, const {B} *bias, {T} *y, {more}) {{
    int per_in = w->channels / w->groups, per_out = w->out / w->groups, o, r, c, i, ky, kx;
    for (o = 0; o < w->out; o++) {{
        const {T} *from = x + (long)(o / per_out) * per_in * w->height * w->width;
        const {T} *of = weight + (long)o * per_in * w->kernel_y * w->kernel_x;
        for (r = 0; r < w->rows; r++) {{
            int top = r * w->stride_y - w->padding_y, y0 = @first(top, w->dilation_y);
            int y1 = @last(top, w->dilation_y, w->kernel_y, w->height);
            for (c = 0; c < w->columns; c++) {{
                int left = c * w->stride_x - w->padding_x, x0 = @first(left, w->dilation_x);
                int x1 = @last(left, w->dilation_x, w->kernel_x, w->width);
                {B} sum = bias[o];
                for (i = 0; i < per_in; i++)
                    for (ky = y0; ky < y1; ky++) {{
                        const {T} *row = from + ((long)i * w->height + top + ky * w->dilation_y) * w->width + left;
                        const {T} *by = of + (i * w->kernel_y + ky) * w->kernel_x;
                        for (kx = x0; kx < x1; kx++) sum += {product};
                    }}
                *y++ = {result};
            }}
        }}
    }}
}}
"""

_LINEAR = """static void @linear{q}(const {T} *x, const {T} *weight, const {B} *bias, {T} *y, int rows, int columns, int out, {more}) {{
    int m, o, i;
    for (m = 0; m < rows; m++)
        for (o = 0; o < out; o++) {{
            const {T} *from = x + (long)m * columns, *by = weight + (long)o * columns;
            {B} sum = bias[o];
            for (i = 0; i < columns; i++) sum += {product};
            *y++ = {result};
        }}
}}
"""  # noqa: E501

_FLOAT = {"q": "", "T": "float", "B": "float", "more": "float low, float high"}
_BYTES = {
    "q": "_q",
    "T": "int8_t",
    "B": "int32_t",
    "more": "const int32_t *multiplier, const int8_t *shift, int zero_x, int zero_y, int low, int high",
}
_CLAMP, _BYTE = "@clamped(sum, low, high)", "@byte(zero_y + @scaled(sum, multiplier[o], shift[o]), low, high)"

_POOL = """static void @pool_{of}{q}(const @window *w, const {T} *x, {T} *y{more}) {{
    int o, r, c, ky, kx;
    for (o = 0; o < w->channels; o++, x += (long)w->height * w->width)
        for (r = 0; r < w->rows; r++) {{
            int top = r * w->stride_y - w->padding_y, y0 = @first(top, w->dilation_y);
            int y1 = @last(top, w->dilation_y, w->kernel_y, w->height);
            for (c = 0; c < w->columns; c++) {{
                int left = c * w->stride_x - w->padding_x, x0 = @first(left, w->dilation_x);
                int x1 = @last(left, w->dilation_x, w->kernel_x, w->width);
                {B} found = {begin};
                for (ky = y0; ky < y1; ky++)
                    for (kx = x0; kx < x1; kx++) {{
                        {T} value = x[(long)(top + ky * w->dilation_y) * w->width + left + kx * w->dilation_x];
                        {take}
                    }}
                *y++ = {result};
            }}
        }}
}}
"""

_REDUCE = """static void @{of}{q}(const {T} *x, {T} *y, int outer, int size, int inner{more}) {{
    int o, s, i;
    for (o = 0; o < outer; o++, x += (long)size * inner)
        for (i = 0; i < inner; i++) {{
            {B} found = {begin};
            for (s = 0; s < size; s++) {{
                {T} value = x[(long)s * inner + i];
                {take}
            }}
            *y++ = {result};
        }}
}}
"""

_LARGEST = "if (value > found) found = value;"
_MEAN_Q = ", int32_t multiplier, int shift, int zero_x, int zero_y"
_RESULT_Q = "@byte(zero_y + @scaled(found, multiplier, shift), -128, 127)"

_BINARY = """static void @{of}(const int *d, const float *a, const float *b, float *y, float low, float high) {{
    int i, j, k, l; /* d: four sizes, the strides of a, the strides of b */
    for (i = 0; i < d[0]; i++)
        for (j = 0; j < d[1]; j++)
            for (k = 0; k < d[2]; k++) {{
                const float *p = a + (long)i * d[4] + j * d[5] + k * d[6];
                const float *q = b + (long)i * d[8] + j * d[9] + k * d[10];
                for (l = 0; l < d[3]; l++, p += d[7], q += d[11]) *y++ = @clamped({result}, low, high);
            }}
}}
"""

_BINARY_Q = """static void @{of}_q(const int *d, const int8_t *a, const int8_t *b, int8_t *y, {more}int zero_a, int zero_b, int zero_y, int low, int high) {{
    int i, j, k, l; /* d: four sizes, the strides of a, the strides of b */
    for (i = 0; i < d[0]; i++)
        for (j = 0; j < d[1]; j++)
            for (k = 0; k < d[2]; k++) {{
                const int8_t *p = a + (long)i * d[4] + j * d[5] + k * d[6];
                const int8_t *q = b + (long)i * d[8] + j * d[9] + k * d[10];
                for (l = 0; l < d[3]; l++, p += d[7], q += d[11]) *y++ = @byte(zero_y + {result}, low, high);
            }}
}}
"""  # noqa: E501

_UNARY = """static void @{of}(const float *x, float *y, int n{more}) {{
    int i;
    for (i = 0; i < n; i++) {{
        float v = x[i];
        y[i] = {result};
    }}
}}
"""

UNARY = {
    "abs": "fabsf(v)",
    "cos": "cosf(v)",
    "elu": "v > 0.0f ? v : slope * expm1f(v)",
    "erf": "erff(v)",
    "exp": "expf(v)",
    "gelu": "0.5f * v * (1.0f + erff(v * 0.70710678f))",
    "gelu_tanh": "0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)))",
    "hardsigmoid": "v <= -3.0f ? 0.0f : v >= 3.0f ? 1.0f : (v + 3.0f) / 6.0f",
    "hardswish": "v <= -3.0f ? 0.0f : v >= 3.0f ? v : v * (v + 3.0f) / 6.0f",
    "leaky": "v > 0.0f ? v : slope * v",
    "log": "logf(v)",
    "mish": "v * tanhf(v > 20.0f ? v : log1pf(expf(v)))",
    "neg": "-v",
    "reciprocal": "1.0f / v",
    "rsqrt": "1.0f / sqrtf(v)",
    "sigmoid": "1.0f / (1.0f + expf(-v))",
    "silu": "v / (1.0f + expf(-v))",
    "sin": "sinf(v)",
    "softplus": "v > 20.0f ? v : log1pf(expf(v))",
    "sqrt": "sqrtf(v)",
    "square": "v * v",
    "tanh": "tanhf(v)",
}
BINARY = {
    "add": "*p + *q",
    "div": "*p / *q",
    "maximum": "*p > *q ? *p : *q",
    "minimum": "*p < *q ? *p : *q",
    "mul": "*p * *q",
    "sub": "*p - *q",
}

KERNELS = {
    "window": WINDOW,
    "first": FIRST,
    "clamped": CLAMPED,
    "scaled": SCALED,
    "conv": _CONV.format(**_FLOAT, product="row[kx * w->dilation_x] * by[kx]", result=_CLAMP),
    "conv_q": _CONV.format(**_BYTES, product="(row[kx * w->dilation_x] - zero_x) * by[kx]", result=_BYTE),
    "linear": _LINEAR.format(**_FLOAT, product="from[i] * by[i]", result=_CLAMP),
    "linear_q": _LINEAR.format(**_BYTES, product="(from[i] - zero_x) * by[i]", result=_BYTE),
    "matmul": """static void @matmul(const float *a, const float *b, float *y, int batch, int rows, int inner,
                    int columns) {
    int n, r, c, i;
    for (n = 0; n < batch; n++, b += (long)inner * columns)
        for (r = 0; r < rows; r++, a += inner)
            for (c = 0; c < columns; c++) {
                float sum = 0.0f;
                for (i = 0; i < inner; i++) sum += a[i] * b[(long)i * columns + c];
                *y++ = sum;
            }
}
""",
    "pool_max": _POOL.format(
        of="max", q="", T="float", B="float", more="", begin="-INFINITY", take=_LARGEST, result="found"
    ),
    "pool_max_q": _POOL.format(
        of="max", q="_q", T="int8_t", B="int8_t", more="", begin="-128", take=_LARGEST, result="found"
    ),
    "pool_mean": _POOL.format(
        of="mean",
        q="",
        T="float",
        B="float",
        more=", int counted",
        begin="0.0f",
        take="found += value;",
        result="found / (float)(counted ? w->kernel_y * w->kernel_x : (y1 - y0) * (x1 - x0))",
    ),
    "pool_mean_q": _POOL.format(
        of="mean",
        q="_q",
        T="int8_t",
        B="int32_t",
        more=_MEAN_Q,
        begin="0",
        take="found += value - zero_x;",
        result=_RESULT_Q,
    ),
    "max": _REDUCE.format(
        of="max", q="", T="float", B="float", more="", begin="-INFINITY", take=_LARGEST, result="found"
    ),
    "max_q": _REDUCE.format(
        of="max", q="_q", T="int8_t", B="int8_t", more="", begin="-128", take=_LARGEST, result="found"
    ),
    "sum": _REDUCE.format(
        of="sum", q="", T="float", B="float", more="", begin="0.0f", take="found += value;", result="found"
    ),
    "mean": _REDUCE.format(
        of="mean",
        q="",
        T="float",
        B="float",
        more="",
        begin="0.0f",
        take="found += value;",
        result="found / (float)size",
    ),
    "mean_q": _REDUCE.format(
        of="mean",
        q="_q",
        T="int8_t",
        B="int32_t",
        more=_MEAN_Q,
        begin="0",
        take="found += value - zero_x;",
        result=_RESULT_Q,
    ),
    "softmax": """static void @softmax(const float *x, float *y, int outer, int size, int inner, int logarithm) {
    int o, s, i;
    for (o = 0; o < outer; o++)
        for (i = 0; i < inner; i++) {
            const float *from = x + (long)o * size * inner + i;
            float *to = y + (long)o * size * inner + i;
            float most = -INFINITY, sum = 0.0f;
            for (s = 0; s < size; s++) most = from[(long)s * inner] > most ? from[(long)s * inner] : most;
            for (s = 0; s < size; s++) sum += expf(from[(long)s * inner] - most);
            for (s = 0; s < size; s++) {
                float value = from[(long)s * inner] - most;
                to[(long)s * inner] = logarithm ? value - logf(sum) : expf(value) / sum;
            }
        }
}
""",
    "norm": """static void @norm(const float *x, const float *weight, const float *bias, float *y, int outer,
                  int inner, float eps) {
    int o, i;
    for (o = 0; o < outer; o++, x += inner, y += inner) {
        float mean = 0.0f, variance = 0.0f;
        for (i = 0; i < inner; i++) mean += x[i];
        mean /= (float)inner;
        for (i = 0; i < inner; i++) variance += (x[i] - mean) * (x[i] - mean);
        variance = 1.0f / sqrtf(variance / (float)inner + eps);
        for (i = 0; i < inner; i++) y[i] = (x[i] - mean) * variance * weight[i] + bias[i];
    }
}
""",
    "clamp": _UNARY.format(of="clamp", more=", float low, float high", result="@clamped(v, low, high)"),
    "table": """static void @table(const int8_t *x, const int8_t *table, int8_t *y, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = table[x[i] + 128];
}
""",
    "quantise": """static void @quantise(const float *x, int8_t *y, int n, float per, int zero) {
    int i;
    for (i = 0; i < n; i++) {
        float v = x[i] * per;
        y[i] = @byte(zero + (int32_t)lrintf(v < -1000.0f ? -1000.0f : v > 1000.0f ? 1000.0f : v), -128, 127);
    }
}
""",
    "dequantise": """static void @dequantise(const int8_t *x, float *y, int n, float scale, int zero) {
    int i;
    for (i = 0; i < n; i++) y[i] = (float)(x[i] - zero) * scale;
}
""",
    "copy": """static void @copy_NUMBER(const int *d, const NUMBER *x, NUMBER *y) {
    int i, j, k, l; /* d: four sizes, the strides of x, those of y, then the first places in x and y */
    for (i = 0; i < d[0]; i++)
        for (j = 0; j < d[1]; j++)
            for (k = 0; k < d[2]; k++) {
                const NUMBER *from = x + d[12] + (long)i * d[4] + j * d[5] + k * d[6];
                NUMBER *to = y + d[13] + (long)i * d[8] + j * d[9] + k * d[10];
                for (l = 0; l < d[3]; l++, from += d[7], to += d[11]) *to = *from;
            }
}
""",
    "fill": """static void @fill_NUMBER(NUMBER *y, int n, NUMBER value) {
    int i;
    for (i = 0; i < n; i++) y[i] = value;
}
""",
    "gather": """static void @gather_NUMBER(const NUMBER *x, const int32_t *places, NUMBER *y, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = x[places[i]];
}
""",
    "rows": """static void @rows_NUMBER(const NUMBER *table, const int32_t *numbers, NUMBER *y, int n, int width,
                         int rows) {
    int i, j; /* a number outside of the table takes its last row */
    for (i = 0; i < n; i++) {
        int row = numbers[i] < 0 || numbers[i] >= rows ? rows - 1 : numbers[i];
        for (j = 0; j < width; j++) *y++ = table[(long)row * width + j];
    }
}
""",
    **{of: _BINARY.format(of=of, result=result) for of, result in BINARY.items()},
    "add_q": _BINARY_Q.format(
        of="add",
        more="int32_t by_a, int32_t by_b, int shift, ",
        result="@scaled((int64_t)(*p - zero_a) * by_a + (int64_t)(*q - zero_b) * by_b, 1, shift)",
    ),
    "mul_q": _BINARY_Q.format(
        of="mul",
        more="int32_t multiplier, int shift, ",
        result="@scaled((*p - zero_a) * (*q - zero_b), multiplier, shift)",
    ),
    **{
        of: _UNARY.format(of=of, more=", float slope" * (of in ("leaky", "elu")), result=result)
        for of, result in UNARY.items()
    },
}  # fmt: skip
"""By name, in an order in which each comes after those that it calls."""

NEEDS = {
    "conv": ("window", "first", "clamped"),
    "conv_q": ("window", "first", "scaled"),
    "linear": ("clamped",),
    "linear_q": ("scaled",),
    "pool_max": ("window", "first"),
    "pool_max_q": ("window", "first"),
    "pool_mean": ("window", "first"),
    "pool_mean_q": ("window", "first", "scaled"),
    "mean_q": ("scaled",),
    "clamp": ("clamped",),
    "quantise": ("scaled",),
    "add_q": ("scaled",),
    "mul_q": ("scaled",),
    **dict.fromkeys(BINARY, ("clamped",)),
}
"""What else a loop calls."""
