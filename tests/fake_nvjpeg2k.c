/* A stand-in for libnvjpeg2k.so and for CUDA's streams, events and memory, for tests without a GPU.
 *
 * A CUDA stream is a thread that works off a list of tasks; "device memory" is host memory. A decode
 * waits on the host and again on its stream, as long as the frame itself says, then writes
 * value(x, y) = (tag + 31 y + 7 x + 1000 resolutions) mod 2^precision (less half the range if
 * signed). What a correct caller never does is counted (fake_count): a state used by two calls, used
 * before its stream is done with it, or destroyed then; bytes that change or vanish while they are
 * in use; things destroyed twice.
 *
 * The frame says how to behave in its COM marker: tag u32, kind u8, status u8, host u16, stream u16
 * (microseconds), little endian. Kinds: 0 well, 1 refused at parse, 2 refused at decode, 3 fails on
 * the stream and poisons the device.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef WITH_HEADER /* the true header, where it is installed: the compiler compares the prototypes */
#define _NVJPEG2K_DISABLE_CUDA_TOOLKIT_HEADERS
#include "nvjpeg2k.h"
#else
typedef int nvjpeg2kStatus_t;
typedef void *cudaStream_t;
typedef int libraryPropertyType;
typedef struct {
    uint32_t image_width, image_height, tile_width, tile_height;
    uint32_t num_tiles_x, num_tiles_y, num_components;
} nvjpeg2kImageInfo_t;
typedef struct {
    uint32_t component_width, component_height;
    uint8_t precision, sgn;
} nvjpeg2kImageComponentInfo_t;
typedef struct {
    void **pixel_data;
    size_t *pitch_in_bytes;
    int pixel_type;
    uint32_t num_components;
} nvjpeg2kImage_t;
typedef struct nvjpeg2kHandle *nvjpeg2kHandle_t;
typedef struct nvjpeg2kDecodeState *nvjpeg2kDecodeState_t;
typedef struct nvjpeg2kStream *nvjpeg2kStream_t;
typedef struct nvjpeg2kDecodeParams *nvjpeg2kDecodeParams_t;
#endif

enum { ILLEGAL_ADDRESS = 700 };
enum {
    HANDLES, STATES, BITSTREAMS, STREAMS, EVENTS,            /* alive now */
    REUSED, SHARED, EARLY, CHANGED,                          /* violations */
    DECODED, AT_ONCE, POISONED, MEMORY, LIMIT, DEVICE_PADDING, PINNED_PADDING, NO_DEVICE,
    STATES_MADE,
    DISCARD, /* whether num_res_levels are those to leave out */
    COUNTERS
};
static long counters[COUNTERS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long running;

static void add(int which, long by) {
    pthread_mutex_lock(&lock);
    counters[which] += by;
    pthread_mutex_unlock(&lock);
}
long fake_count(int which) {
    pthread_mutex_lock(&lock);
    long found = counters[which];
    pthread_mutex_unlock(&lock);
    return found;
}
void fake_set(int which, long value) {
    pthread_mutex_lock(&lock);
    counters[which] = value;
    pthread_mutex_unlock(&lock);
}

struct nvjpeg2kHandle { int kind; };
struct nvjpeg2kDecodeParams { int kind; };
struct nvjpeg2kStream {
    const uint8_t *data;
    size_t length;
    uint64_t sum;
    uint32_t rows, columns, levels, tag;
    uint8_t precision, sign, kind, status;
    uint16_t host, stream;
};
struct nvjpeg2kDecodeState {
    int in_call, on_stream;
    long memory;
};

/* ---------------------------------------------------------------- CUDA */
typedef struct { int wanted, reached; } event_t;
typedef struct task {
    struct task *next;
    int kind; /* 0 decode, 1 record, 2 wait, 3 end */
    event_t *event;
    int number;
    struct nvjpeg2kDecodeState *state;
    struct nvjpeg2kStream frame;
    uint8_t *to;
    size_t pitch;
    uint32_t resolutions;
} task_t;
typedef struct {
    pthread_t thread;
    task_t *first, *last;
    int busy;
} stream_t;

static uint64_t sum_of(const uint8_t *data, size_t length) {
    uint64_t sum = 14695981039346656037u;
    for (size_t i = 0; i < length; i++) sum = (sum ^ data[i]) * 1099511628211u;
    return sum;
}

static void write_pixels(task_t *task) {
    struct nvjpeg2kStream *f = &task->frame;
    uint32_t shift = f->levels + 1 - task->resolutions;
    uint32_t rows = (f->rows + (1u << shift) - 1) >> shift;
    uint32_t columns = (f->columns + (1u << shift) - 1) >> shift;
    uint32_t mask = (1u << f->precision) - 1;
    for (uint32_t y = 0; y < rows; y++)
        for (uint32_t x = 0; x < columns; x++) {
            uint32_t v = (f->tag + 31 * y + 7 * x + 1000 * task->resolutions) & mask;
            uint8_t *at = task->to + y * task->pitch + x * (f->precision > 8 ? 2 : 1);
            if (f->sign) v -= 1u << (f->precision - 1);
            at[0] = (uint8_t)v;
            if (f->precision > 8) at[1] = (uint8_t)(v >> 8);
        }
}

static void *work(void *argument) {
    stream_t *stream = argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first) pthread_cond_wait(&changed, &lock);
        task_t *task = stream->first;
        if (task->kind == 2)
            while (task->event->reached < task->number) pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
        if (task->kind == 0) {
            usleep(task->frame.stream);
            if (task->frame.kind == 3) fake_set(POISONED, 1);
            if (sum_of(task->frame.data, task->frame.length) != task->frame.sum) add(CHANGED, 1);
            if (task->frame.kind != 3) write_pixels(task);
        }
        pthread_mutex_lock(&lock);
        if (task->kind == 0) {
            task->state->on_stream = 0;
            counters[DECODED]++;
            running--;
        }
        if (task->kind == 1 && task->event->reached < task->number)
            task->event->reached = task->number;
        int end = task->kind == 3;
        stream->first = task->next;
        if (!stream->first) stream->last = NULL;
        free(task);
        pthread_cond_broadcast(&changed);
        if (end) break;
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void push(stream_t *stream, task_t task) {
    task_t *copy = malloc(sizeof task);
    *copy = task;
    copy->next = NULL;
    pthread_mutex_lock(&lock);
    if (task.kind == 1) copy->number = ++task.event->wanted;
    if (task.kind == 2) copy->number = task.event->wanted;
    if (stream->last) stream->last->next = copy; else stream->first = copy;
    stream->last = copy;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static int failure(void) { return fake_count(POISONED) ? ILLEGAL_ADDRESS : 0; }

void *fake_stream_create(void) {
    stream_t *stream = calloc(1, sizeof *stream);
    add(STREAMS, 1);
    pthread_create(&stream->thread, NULL, work, stream);
    return stream;
}
void fake_stream_destroy(stream_t *stream) {
    push(stream, (task_t){.kind = 3});
    pthread_join(stream->thread, NULL);
    free(stream);
    add(STREAMS, -1);
}
int fake_stream_synchronize(stream_t *stream) {
    pthread_mutex_lock(&lock);
    while (stream->first) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return failure();
}
void *fake_event_create(void) {
    add(EVENTS, 1);
    return calloc(1, sizeof(event_t));
}
void fake_event_destroy(event_t *event) {
    /* like CUDA: what still refers to it goes on; here its memory simply stays */
    (void)event;
    add(EVENTS, -1);
}
int fake_event_record(event_t *event, stream_t *stream) {
    push(stream, (task_t){.kind = 1, .event = event});
    return failure();
}
int fake_stream_wait(stream_t *stream, event_t *event) {
    push(stream, (task_t){.kind = 2, .event = event});
    return failure();
}
int fake_event_synchronize(event_t *event) {
    pthread_mutex_lock(&lock);
    int number = event->wanted;
    while (event->reached < number) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return failure();
}
int fake_event_done(event_t *event) {
    pthread_mutex_lock(&lock);
    int done = event->reached >= event->wanted;
    pthread_mutex_unlock(&lock);
    return done;
}

/* ---------------------------------------------------------------- nvJPEG2000 */
nvjpeg2kStatus_t nvjpeg2kGetProperty(libraryPropertyType type, int *value) {
    *value = (int[]){0, 11, 0}[type];
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kGetCudartProperty(libraryPropertyType type, int *value) {
    *value = (int[]){12, 9, 0}[type];
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kCreateSimple(nvjpeg2kHandle_t *handle) {
    *handle = calloc(1, sizeof **handle);
    add(HANDLES, 1);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDestroy(nvjpeg2kHandle_t handle) {
    free(handle);
    add(HANDLES, -1);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kSetDeviceMemoryPadding(size_t padding, nvjpeg2kHandle_t handle) {
    (void)handle;
    fake_set(DEVICE_PADDING, (long)padding);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kGetDeviceMemoryPadding(size_t *padding, nvjpeg2kHandle_t handle) {
    (void)handle;
    *padding = (size_t)fake_count(DEVICE_PADDING);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kSetPinnedMemoryPadding(size_t padding, nvjpeg2kHandle_t handle) {
    (void)handle;
    fake_set(PINNED_PADDING, (long)padding);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kGetPinnedMemoryPadding(size_t *padding, nvjpeg2kHandle_t handle) {
    (void)handle;
    *padding = (size_t)fake_count(PINNED_PADDING);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDecodeStateCreate(nvjpeg2kHandle_t handle, nvjpeg2kDecodeState_t *state) {
    (void)handle;
    if (fake_count(POISONED) || fake_count(NO_DEVICE)) return 6;
    *state = calloc(1, sizeof **state);
    add(STATES, 1);
    add(STATES_MADE, 1);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDecodeStateDestroy(nvjpeg2kDecodeState_t state) {
    pthread_mutex_lock(&lock);
    if (state->in_call || state->on_stream) counters[EARLY]++;
    counters[MEMORY] -= state->memory;
    counters[STATES]--;
    pthread_mutex_unlock(&lock);
    if (!state->on_stream) free(state);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamCreate(nvjpeg2kStream_t *stream) {
    *stream = calloc(1, sizeof **stream);
    add(BITSTREAMS, 1);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamDestroy(nvjpeg2kStream_t stream) {
    free(stream);
    add(BITSTREAMS, -1);
    return 0;
}

static uint32_t big(const uint8_t *at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
    return value;
}

nvjpeg2kStatus_t nvjpeg2kStreamParse(nvjpeg2kHandle_t handle, const unsigned char *data,
                                     size_t length, int metadata, int save,
                                     nvjpeg2kStream_t stream) {
    (void)handle;
    if (metadata || save || length < 60 || big(data, 4) != 0xFF4FFF51) return 3;
    *stream = (struct nvjpeg2kStream){.data = data, .length = length};
    stream->sum = sum_of(data, length);
    stream->columns = big(data + 8, 4);
    stream->rows = big(data + 12, 4);
    stream->precision = (data[42] & 127) + 1;
    stream->sign = data[42] >> 7;
    for (size_t at = 2; big(data + at, 2) != 0xFF90; at += 2 + big(data + at + 2, 2)) {
        if (big(data + at, 2) == 0xFF52) stream->levels = data[at + 9];
        if (big(data + at, 2) == 0xFF64) {
            const uint8_t *script = data + at + 6;
            memcpy(&stream->tag, script, 4);
            stream->kind = script[4];
            stream->status = script[5];
            memcpy(&stream->host, script + 6, 2);
            memcpy(&stream->stream, script + 8, 2);
        }
    }
    return stream->kind == 1 ? stream->status : 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamGetImageInfo(nvjpeg2kStream_t s, nvjpeg2kImageInfo_t *info) {
    *info = (nvjpeg2kImageInfo_t){s->columns, s->rows, s->columns, s->rows, 1, 1, 1};
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamGetImageComponentInfo(nvjpeg2kStream_t s,
                                                     nvjpeg2kImageComponentInfo_t *info,
                                                     uint32_t component) {
    *info = (nvjpeg2kImageComponentInfo_t){s->columns, s->rows, s->precision, s->sign};
    return component ? 2 : 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamGetResolutionsInTile(nvjpeg2kStream_t s, uint32_t tile,
                                                    uint32_t *count) {
    *count = s->levels + 1;
    return tile ? 2 : 0;
}
nvjpeg2kStatus_t nvjpeg2kStreamGetResolutionComponentDim(nvjpeg2kStream_t s, uint32_t component,
                                                         uint32_t tile, uint32_t resolution,
                                                         uint32_t *width, uint32_t *height) {
    if (component || tile || resolution > s->levels) return 2;
    uint32_t shift = s->levels - resolution;
    *width = (s->columns + (1u << shift) - 1) >> shift;
    *height = (s->rows + (1u << shift) - 1) >> shift;
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDecodeParamsCreate(nvjpeg2kDecodeParams_t *params) {
    *params = calloc(1, sizeof **params);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDecodeParamsDestroy(nvjpeg2kDecodeParams_t params) {
    free(params);
    return 0;
}
nvjpeg2kStatus_t nvjpeg2kDecodeParamsSetDecodeArea(nvjpeg2kDecodeParams_t params, uint32_t start_x,
                                                   uint32_t end_x, uint32_t start_y,
                                                   uint32_t end_y) {
    (void)params, (void)start_x, (void)end_x, (void)start_y, (void)end_y;
    return 0;
}

static int decode(nvjpeg2kDecodeState_t state, nvjpeg2kStream_t frame, uint32_t resolutions,
                  nvjpeg2kImage_t *image, cudaStream_t stream) {
    int wanted = frame->precision <= 8 ? 0 : frame->sign ? 2 : 1;
    if (image->num_components != 1 || (int)image->pixel_type != wanted) return 2;
    pthread_mutex_lock(&lock);
    if (state->in_call) counters[SHARED]++;
    if (state->on_stream) counters[REUSED]++;
    state->in_call = 1;
    long need = (long)frame->rows * frame->columns * 8;
    int poisoned = counters[POISONED] != 0;
    int full = counters[LIMIT] && need > state->memory &&
               counters[MEMORY] + need - state->memory > counters[LIMIT];
    if (!full && need > state->memory) {
        counters[MEMORY] += need - state->memory;
        state->memory = need;
    }
    pthread_mutex_unlock(&lock);
    usleep(frame->host);
    pthread_mutex_lock(&lock);
    state->in_call = 0;
    int status = poisoned ? 6 : full ? 5 : frame->kind == 2 ? frame->status : 0;
    if (!status) {
        state->on_stream = 1;
        if (++running > counters[AT_ONCE]) counters[AT_ONCE] = running;
    }
    pthread_mutex_unlock(&lock);
    if (!status)
        push(stream, (task_t){.state = state, .frame = *frame, .to = image->pixel_data[0],
                              .pitch = image->pitch_in_bytes[0], .resolutions = resolutions});
    return status;
}
nvjpeg2kStatus_t nvjpeg2kDecodeImage(nvjpeg2kHandle_t handle, nvjpeg2kDecodeState_t state,
                                     nvjpeg2kStream_t frame, nvjpeg2kDecodeParams_t params,
                                     nvjpeg2kImage_t *image, cudaStream_t stream) {
    (void)handle;
    return params ? 9 : decode(state, frame, frame->levels + 1, image, stream);
}
nvjpeg2kStatus_t nvjpeg2kDecodeTile(nvjpeg2kHandle_t handle, nvjpeg2kDecodeState_t state,
                                    nvjpeg2kStream_t frame, nvjpeg2kDecodeParams_t params,
                                    uint32_t tile, uint32_t resolutions, nvjpeg2kImage_t *image,
                                    cudaStream_t stream) {
    (void)handle;
    if (params || tile || resolutions > frame->levels + 1) return 2;
    if (resolutions && fake_count(DISCARD))
        resolutions = resolutions > frame->levels ? 1 : frame->levels + 1 - resolutions;
    return decode(state, frame, resolutions ? resolutions : frame->levels + 1, image, stream);
}
