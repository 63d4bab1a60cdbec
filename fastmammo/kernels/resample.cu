// A batch of images of different sizes -> one output: look-up, crop, flip, resampling, padding and
// normalisation in one launch. The twin of cpu.resample and batch.resample_batch, bit for bit.
//
//   total(i, j) = sum_y sum_x row_weight[i][y] column_weight[j][x] table[pixels[y][x] - first]
//   value(i, j) = total / 2^32, for 8 bits / (2^32 * 257), rounded once, half up
//
// A block makes tiles of TILE_ROWS x TILE_COLUMNS output pixels, a column of `march` tiles, so that
// the table is copied into shared memory once. For each tile, in chunks of at most STAGED_ROWS x
// SPAN source samples (one chunk where the image shrinks by up to 2.2):
//   1. stage     the samples, 16 bytes a thread, looked up, into shared memory (uint16)
//   2. vertical  the sums over y into shared memory: exact in uint32, 65535 * 2^16 < 2^32
//   3. horizontal the sums over x in registers, exact in uint64, four rows a thread
// What lies outside the placed image is written too, with the value of black.
//
// For an output pixel, with s source samples an axis (s = 1..2 on a wavelet level, where about
// s + 2 taps an axis weigh; 2..4 at full resolution with s + 1):
//   bytes       2 s^2 read and 1, 2 or 4 written; the rims that tiles share come from the L2 cache
//   operations  s^2 look-ups, s (s + 2) 32-bit and s + 2 64-bit multiply-adds, 6 to round and store
// The indices, bounds and offsets are checked on the host (batch.py): the kernel trusts them.

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace {

constexpr int WIDE = 8;  // samples that a thread handles at once
constexpr int GROUP_ROWS = TILE_ROWS * TILE_COLUMNS / THREADS;  // output rows of a thread
constexpr int LOADS = 2;  // vectors in flight a thread

constexpr int max_of(int a, int b) { return a > b ? a : b; }
static_assert(TILE_ROWS * TILE_COLUMNS % THREADS == 0 && THREADS % TILE_COLUMNS == 0, "tile");
static_assert(SPAN % WIDE == 0 && SPAN / WIDE * max_of(STAGED_ROWS, TILE_ROWS) <= 3000 &&
                  SPAN / WIDE <= 20,
              "divided()");

enum Kind { UINT8, INT8, UINT16, INT16 };
enum Output { OUT_UINT8, OUT_UINT16, OUT_FLOAT16, OUT_BFLOAT16, OUT_FLOAT32 };

struct Range {
    int first, end;
};

// Twin of launches.JOB. Offsets count from `base`.
struct Job {
    unsigned long long pixels;          // address
    unsigned long long table;           // offset of uint16 (entries, padded to a multiple of 8)
    unsigned long long row_starts;      // offset of int32 (height)
    unsigned long long row_counts;      // offset of int32 (height)
    unsigned long long row_weights;     // offset of int32 (height, row_reach)
    unsigned long long column_starts;   // offset of int32 (width)
    unsigned long long column_counts;   // offset of int32 (width)
    unsigned long long column_weights;  // offset of int32 (largest count, width)
    unsigned long long row_ranges;      // offset of Range (tiles): source rows of each tile row
    unsigned long long column_ranges;   // offset of Range (tiles): source columns
    unsigned pitch;                     // bytes from one source row to the next
    int rows, columns;                  // of the source
    int kind;                           // Kind of the source
    int first, entries;                 // the table: stored value of its first entry, its length
    int in_shared;                      // whether the table fits into the shared memory
    int top, left, height, width;       // place of the image in the output
    int row_reach;
    int mirror;
    int black;
};
static_assert(sizeof(Job) == JOB_BYTES, "Job and launches.JOB differ");

__device__ __forceinline__ int clamped(int value, int last) {
    return min(max(value, 0), last);
}

// floor(n / divisor) for n < 3000 and divisor <= 20, from reciprocal = 65536 / divisor + 1
__device__ __forceinline__ int divided(int n, int reciprocal) {
    return (n * reciprocal) >> 16;
}

// Read WIDE samples `offset` bytes into the `size` bytes at `pixels`, wherever they lie.
template <typename Sample>
__device__ __forceinline__ void load(unsigned long long pixels, unsigned offset, unsigned size,
                                     bool aligned,
                                     unsigned (&words)[WIDE * sizeof(Sample) / 4]) {
    constexpr int bytes = WIDE * sizeof(Sample), count = bytes / 4;
    const unsigned long long address = pixels + offset;
    if (aligned && offset + bytes <= size) {
        if constexpr (bytes == 16) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(address));
            words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        } else {
            const uint2 two = __ldg(reinterpret_cast<const uint2*>(address));
            words[0] = two.x, words[1] = two.y;
        }
        return;
    }
    const unsigned past = static_cast<unsigned>(address) & 3;  // whole words, then shifted
    if (offset >= past && offset - past + bytes + 4 <= size) {
        const unsigned* from = reinterpret_cast<const unsigned*>(address - past);
        const unsigned shift = 8 * past;
        unsigned low = __ldg(from);
#pragma unroll
        for (int k = 0; k < count; ++k) {
            const unsigned high = __ldg(from + k + 1);
            words[k] = __funnelshift_r(low, high, shift);
            low = high;
        }
        return;
    }
    constexpr unsigned mask = sizeof(Sample) == 1 ? 0xffu : 0xffffu;
    constexpr int each = 4 / sizeof(Sample);
#pragma unroll
    for (int k = 0; k < count; ++k) words[k] = 0;
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
        if (offset + (k + 1) * sizeof(Sample) <= size) {
            const auto sample = __ldg(reinterpret_cast<const Sample*>(address) + k);
            words[k / each] |= (static_cast<unsigned>(sample) & mask) << (32 / each * (k % each));
        }
    }
}

// Look the samples of `rows` x 8 `vectors` up, from (row, column) on, into shared memory.
template <typename Sample>
__device__ __forceinline__ void stage(const Job& job, const unsigned short* table, int row,
                                      int rows, int column, int vectors,
                                      unsigned short (*staged)[SPAN]) {
    constexpr int each = 4 / sizeof(Sample);
    const unsigned size = (job.rows - 1) * job.pitch + job.columns * sizeof(Sample);
    const unsigned corner = row * job.pitch + column * sizeof(Sample);
    const bool aligned =
        ((static_cast<unsigned>(job.pixels) | job.pitch) & (WIDE * sizeof(Sample) - 1)) == 0;
    const int first = job.first, last = job.entries - 1;
    const int items = rows * vectors, reciprocal = 65536 / vectors + 1;
    for (int start = threadIdx.x; start < items; start += LOADS * THREADS) {
        unsigned words[LOADS][WIDE / each];
#pragma unroll
        for (int h = 0; h < LOADS; ++h) {
            const int item = start + h * THREADS;
            if (item < items) {
                const int y = divided(item, reciprocal), x = WIDE * (item - y * vectors);
                load<Sample>(job.pixels, corner + y * job.pitch + x * sizeof(Sample), size, aligned,
                             words[h]);
            }
        }
#pragma unroll
        for (int h = 0; h < LOADS; ++h) {
            const int item = start + h * THREADS;
            if (item < items) {
                unsigned shades[WIDE];
#pragma unroll
                for (int k = 0; k < WIDE; ++k) {
                    const auto sample =
                        static_cast<Sample>(words[h][k / each] >> (32 / each * (k % each)));
                    shades[k] = table[clamped(static_cast<int>(sample) - first, last)];
                }
                const int y = divided(item, reciprocal), x = WIDE * (item - y * vectors);
                uint4 packed;
                packed.x = shades[0] | shades[1] << 16;
                packed.y = shades[2] | shades[3] << 16;
                packed.z = shades[4] | shades[5] << 16;
                packed.w = shades[6] | shades[7] << 16;
                *reinterpret_cast<uint4*>(&staged[y][x]) = packed;
            }
        }
    }
}

template <typename Sample>
__device__ __forceinline__ void stage_from(const Job& job, const unsigned short* in_global,
                                           const unsigned short* in_shared, int row, int rows,
                                           int column, int vectors,
                                           unsigned short (*staged)[SPAN]) {
    // two calls: the compiler then knows which memory it reads
    if (job.in_shared) {
        stage<Sample>(job, in_shared, row, rows, column, vectors, staged);
    } else {
        stage<Sample>(job, in_global, row, rows, column, vectors, staged);
    }
}

// Add up the staged rows row..row + rows of every output row of the tile that starts at `top`.
__device__ __forceinline__ void vertical(const Job& job, unsigned long long base, int top, int row,
                                         int rows, int vectors, bool fresh,
                                         const unsigned short (*staged)[SPAN],
                                         unsigned (*sums)[SPAN]) {
    const int* starts = reinterpret_cast<const int*>(base + job.row_starts);
    const int* counts = reinterpret_cast<const int*>(base + job.row_counts);
    const int* weights = reinterpret_cast<const int*>(base + job.row_weights);
    const int items = TILE_ROWS * vectors, reciprocal = 65536 / vectors + 1;
    for (int item = threadIdx.x; item < items; item += THREADS) {
        const int r = divided(item, reciprocal), x = WIDE * (item - r * vectors);
        const int i = top + r - job.top;
        if (i < 0 || i >= job.height) continue;
        const int start = __ldg(starts + i);
        const int stop = min(start + __ldg(counts + i), row + rows);
        const int* weight = weights + i * job.row_reach - start;
        uint4* out = reinterpret_cast<uint4*>(&sums[r][x]);
        uint4 left = {0, 0, 0, 0}, right = {0, 0, 0, 0};
        if (!fresh) left = out[0], right = out[1];
#pragma unroll 2
        for (int y = max(start, row); y < stop; ++y) {
            const unsigned w = static_cast<unsigned>(__ldg(weight + y));
            const uint4 shades = *reinterpret_cast<const uint4*>(&staged[y - row][x]);
            left.x += w * (shades.x & 0xffff), left.y += w * (shades.x >> 16);
            left.z += w * (shades.y & 0xffff), left.w += w * (shades.y >> 16);
            right.x += w * (shades.z & 0xffff), right.y += w * (shades.z >> 16);
            right.z += w * (shades.w & 0xffff), right.w += w * (shades.w >> 16);
        }
        out[0] = left, out[1] = right;
    }
}

// Add up the sums of columns column..column + samples of output column j.
__device__ __forceinline__ void horizontal(const Job& job, unsigned long long base, int j,
                                           int group, int column, int samples,
                                           const unsigned (*sums)[SPAN],
                                           unsigned long long (&totals)[GROUP_ROWS]) {
    const int start = __ldg(reinterpret_cast<const int*>(base + job.column_starts) + j);
    const int count = __ldg(reinterpret_cast<const int*>(base + job.column_counts) + j);
    const int* weights = reinterpret_cast<const int*>(base + job.column_weights) + j;
    const int stop = min(count, column + samples - start);
    for (int t = max(0, column - start); t < stop; ++t) {
        const unsigned w = static_cast<unsigned>(__ldg(weights + t * job.width));
#pragma unroll
        for (int k = 0; k < GROUP_ROWS; ++k) {
            const unsigned sum = sums[group * GROUP_ROWS + k][start + t - column];
            totals[k] += static_cast<unsigned long long>(sum) * w;
        }
    }
}

// total / 2^32 or total / (2^32 * 257), rounded half up
__device__ __forceinline__ unsigned rounded(unsigned long long total, bool eight) {
    if (!eight) return static_cast<unsigned>((total + (1ull << 31)) >> 32);
    const unsigned n = static_cast<unsigned>((total + (257ull << 31)) >> 32);
    return n * 65281u >> 24;  // floor(n / 257) for every n up to 65663; a test tries them all
}

__device__ __forceinline__ unsigned short float16_bits(float x) {
#ifdef __CUDACC__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return float16_bits_on_cpu(x);
#endif
}

__device__ __forceinline__ unsigned short bfloat16_bits(float x) {  // to nearest even; x is finite
    const unsigned bits = __float_as_uint(x);
    return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename Value, typename Convert>
__device__ __forceinline__ void store(void* out, long long at, long long row_stride, int rows,
                                      const unsigned (&values)[GROUP_ROWS], Convert convert) {
    Value* to = static_cast<Value*>(out) + at;
#pragma unroll
    for (int k = 0; k < GROUP_ROWS; ++k) {
        if (k < rows) to[k * row_stride] = static_cast<Value>(convert(values[k]));
    }
}

}  // namespace

// grid (tiles of a row, ceil(tiles of a column / march), images), block THREADS.
// out[n, y, x] lies at n * image_stride + y * row_stride + x, in elements.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    resample_batch(unsigned long long jobs, unsigned long long base, void* out,
                   long long image_stride, long long row_stride, int out_height, int out_width,
                   int march, int out_kind, int eight, float scale, float offset) {
    __shared__ __align__(16) unsigned short staged[STAGED_ROWS][SPAN];
    __shared__ __align__(16) unsigned sums[TILE_ROWS][SPAN];
    __shared__ Job job;
    DYNAMIC_SHARED(uint4, shared_table);

    const int thread = threadIdx.x;
    const unsigned* described =
        reinterpret_cast<const unsigned*>(jobs + blockIdx.z * sizeof(Job));
    if (thread < static_cast<int>(sizeof(Job) / 4)) {
        reinterpret_cast<unsigned*>(&job)[thread] = __ldg(described + thread);
    }
    __syncthreads();

    const int tiles = (out_height + TILE_ROWS - 1) / TILE_ROWS;
    const int tile_column = blockIdx.x;
    const Range columns = reinterpret_cast<const Range*>(base + job.column_ranges)[tile_column];
    const unsigned short* table = reinterpret_cast<const unsigned short*>(base + job.table);
    if (job.in_shared && columns.first < columns.end) {
        for (int k = thread; k < (job.entries + 7) / 8; k += THREADS) {
            shared_table[k] = __ldg(reinterpret_cast<const uint4*>(table) + k);
        }
    }

    const int group = thread / TILE_COLUMNS;
    const int x = tile_column * TILE_COLUMNS + thread % TILE_COLUMNS;
    const int j = job.mirror ? job.left + job.width - 1 - x : x - job.left;
    const bool inside = j >= 0 && j < job.width && x < out_width;

    for (int m = 0; m < march; ++m) {
        const int tile = blockIdx.y * march + m;
        if (tile >= tiles) break;
        const int top = tile * TILE_ROWS;
        const Range rows = reinterpret_cast<const Range*>(base + job.row_ranges)[tile];
        unsigned long long totals[GROUP_ROWS] = {};
        if (rows.first < rows.end) {
            for (int column = columns.first & ~(WIDE - 1); column < columns.end; column += SPAN) {
                const int samples = min(columns.end - column, SPAN);
                const int vectors = (samples + WIDE - 1) / WIDE;
                for (int row = rows.first; row < rows.end; row += STAGED_ROWS) {
                    const int staging = min(rows.end - row, STAGED_ROWS);
                    __syncthreads();  // nobody reads `staged`, `sums` of the last chunk any more
                    const unsigned short* in_shared =
                        reinterpret_cast<const unsigned short*>(shared_table);
                    switch (job.kind) {
                        case UINT8:
                            stage_from<unsigned char>(job, table, in_shared, row, staging, column,
                                                      vectors, staged);
                            break;
                        case INT8:
                            stage_from<signed char>(job, table, in_shared, row, staging, column,
                                                    vectors, staged);
                            break;
                        case UINT16:
                            stage_from<unsigned short>(job, table, in_shared, row, staging, column,
                                                       vectors, staged);
                            break;
                        default:
                            stage_from<short>(job, table, in_shared, row, staging, column, vectors,
                                              staged);
                    }
                    __syncthreads();
                    vertical(job, base, top, row, staging, vectors, row == rows.first, staged,
                             sums);
                }
                __syncthreads();
                if (inside) horizontal(job, base, j, group, column, samples, sums, totals);
            }
        }

        if (x >= out_width) continue;
        const int y = top + group * GROUP_ROWS;
        unsigned values[GROUP_ROWS];
#pragma unroll
        for (int k = 0; k < GROUP_ROWS; ++k) {
            const int i = y + k - job.top;
            const bool covered = inside && i >= 0 && i < job.height;
            values[k] = covered ? rounded(totals[k], eight) : static_cast<unsigned>(job.black);
        }
        const long long at = blockIdx.z * image_stride + y * row_stride + x;
        const int left = out_height - y;  // rows of this thread that exist
        const auto normalised = [=](unsigned v) {  // each operation rounded by itself: no FMA
            return __fadd_rn(__fmul_rn(static_cast<float>(v), scale), offset);
        };
        const auto same = [](unsigned v) { return v; };
        switch (out_kind) {
            case OUT_UINT8:
                store<unsigned char>(out, at, row_stride, left, values, same);
                break;
            case OUT_UINT16:
                store<unsigned short>(out, at, row_stride, left, values, same);
                break;
            case OUT_FLOAT16:
                store<unsigned short>(out, at, row_stride, left, values, [=](unsigned v) {
                    return float16_bits(normalised(v));
                });
                break;
            case OUT_BFLOAT16:
                store<unsigned short>(out, at, row_stride, left, values, [=](unsigned v) {
                    return bfloat16_bits(normalised(v));
                });
                break;
            default:
                store<float>(out, at, row_stride, left, values, normalised);
        }
    }
}
